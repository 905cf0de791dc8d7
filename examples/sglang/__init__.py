"""``make demo-sglang``: a real SGLang with a tiny random model is updated while it serves."""
