"""Demonstrations, run by ``make demo`` and its like, and what a user would write: a transport, settings."""
