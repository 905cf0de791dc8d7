"""``make demo-fp8``: BF16 weights become FP8 on their way into a model that is serving."""
