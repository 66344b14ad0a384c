"""Run the command line with ``python -m frugalrec``."""

from frugalrec.cli import main

main()
