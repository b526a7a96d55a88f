# make demo   set up, then distil, quantise and export a digits model for a 256 kB board
# make test   set up, then lint, types and the whole test suite

PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3.13 python3,$(shell command -v $(python))))
VENV := .venv
INSTALLED := $(VENV)/.installed
TOOLS := gcc:gcc g++:g++ arm-none-eabi-gcc:gcc-arm-none-eabi qemu-system-arm:qemu-system-arm \
	cmake:cmake

.PHONY: demo test lint setup tools arduino package clean

demo: setup tools
	$(VENV)/bin/microstill run recipes/digits.toml

test: setup tools arduino lint
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n auto --dist loadfile

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "microstill needs Python 3.11 or newer: apt-get install python3 python3-venv"; exit 5; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(MAKE) --no-print-directory package PACKAGE=python3-venv
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

tools:
	@missing=; for tool in $(TOOLS); do \
		command -v $${tool%:*} >/dev/null || missing="$$missing $${tool#*:}"; done; \
	[ -e "$$(arm-none-eabi-gcc -print-file-name=libc.a 2>/dev/null)" ] \
		|| missing="$$missing libnewlib-arm-none-eabi"; \
	[ -z "$$missing" ] || $(MAKE) --no-print-directory package PACKAGE="$${missing# }"

# Of use to one test only, and not in every Debian.
arduino:
	@command -v arduino-builder >/dev/null || $(MAKE) --no-print-directory package PACKAGE=arduino-builder \
		|| echo "no arduino-builder: the test that uses it is skipped"

package:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq \
			&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGE); \
	else echo "missing: $(PACKAGE); install with: sudo apt-get install $(PACKAGE)"; exit 5; fi

clean:
	rm -rf runs build
