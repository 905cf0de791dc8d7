"""This adapter updates vLLM, from inside or from outside; see docs/how-to/update-vllm-live.md.

* Inside vLLM: :class:`WorkerExtension`, or the native engine that ``--weight-transfer-config`` names.
* Outside: :class:`VllmFleet` drives running servers through their HTTP interface, and engines that a program holds as
  Python objects; :class:`ServedAdapter` has servers serve a LoRA adapter beside their weights. These need no vLLM
  installed.
"""

from ckpt_transport_vllm.extension import WorkerExtension
from ckpt_transport_vllm.fleet import VllmFleet
from ckpt_transport_vllm.handle import VllmHandle
from ckpt_transport_vllm.served_adapter import ServedAdapter

__all__ = ["ServedAdapter", "VllmFleet", "VllmHandle", "WorkerExtension"]
