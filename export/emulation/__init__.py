"""Programs for Cortex-M cores, built, run on emulated ones, and measured."""
