"""``make demo-vllm``: a real vLLM with a tiny random model is updated while it serves."""
