"""`python -m taskyard` is `taskyard`."""

from taskyard.cli import main

main()
