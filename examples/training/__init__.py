"""``make demo-train``: a sharded trainer improves a model that answers meanwhile."""
