"""A demonstration on a real vLLM, with tiny random models: ``python -m ckpt_transport_vllm.demo``."""
