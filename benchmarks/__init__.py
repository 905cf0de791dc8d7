"""Produces every figure in the docs: ``make bench`` runs most of it, ``python -m benchmarks.NAME`` one module alone."""
