"""The speed of the whole, against peers, in one run: `make bench`, or ``python -m benchmarks``."""
