"""``make demo``: a model is served, its weights are updated meanwhile, and everything is checked."""
