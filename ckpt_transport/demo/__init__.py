"""The demonstration: a small transformer served by two tensor-parallel workers gets new weights while it generates."""
