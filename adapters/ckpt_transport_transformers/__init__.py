"""This adapter makes models of Hugging Face transformers updatable while they serve: see :func:`attach`."""

from ckpt_transport_transformers.attach import attach
from ckpt_transport_transformers.engine import TransformersEngine

__all__ = ["TransformersEngine", "attach"]
