"""This adapter updates vLLM, from inside or from outside; see docs/how-to/update-vllm-live.md.

* Inside vLLM: :class:`WorkerExtension`, or the native engine that ``--weight-transfer-config`` names.
* Outside: :class:`VllmFleet` drives running servers through their HTTP interface, and engines that a program holds as
  Python objects. A LoRA :class:`Adapter` is merged on the way, or served beside the weights. These need no vLLM
  installed.
"""

from ckpt_transport_vllm.adapter import Adapter, ServedAs
from ckpt_transport_vllm.extension import WorkerExtension
from ckpt_transport_vllm.fleet import VllmFleet
from ckpt_transport_vllm.handle import VllmHandle

__all__ = ["Adapter", "ServedAs", "VllmFleet", "VllmHandle", "WorkerExtension"]
