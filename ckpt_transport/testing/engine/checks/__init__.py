"""The checks of engines, by subject."""
