"""A small inference engine to be updated: a transformer, its tensor-parallel workers, and a server before them."""
