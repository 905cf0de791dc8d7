"""What produces every figure in the docs: ``make bench``, or one module alone, as ``python -m benchmarks.planning``."""
