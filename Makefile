# make demo   set up, then distil, quantise and export a digits model for a 256 kB board
# make test   set up, then lint, types and the whole test suite

PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3.13 python3,$(shell command -v $(python))))
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint setup compilers package clean

demo: setup
	$(VENV)/bin/microstill run recipes/digits.toml

test: setup compilers lint
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

compilers:
	@for tool in gcc g++; do command -v $$tool >/dev/null \
		|| $(MAKE) --no-print-directory package PACKAGE=$$tool || exit 5; done

package:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(PACKAGE); \
	else echo "$(PACKAGE) is missing; install it: sudo apt-get install $(PACKAGE)"; exit 5; fi

clean:
	rm -rf runs build
