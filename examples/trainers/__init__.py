"""Trainers of several frameworks bring each step's weights to an engine, as they have them."""
