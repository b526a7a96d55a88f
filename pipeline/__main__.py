"""`python -m pipeline` is `microstill`."""

from pipeline.cli import main

main()
