"""This adapter updates vLLM, from inside or from outside; see docs/how-to/update-vllm-live.md.

* Inside vLLM: :class:`WorkerExtension`, or the native engine that ``--weight-transfer-config`` names.
* Outside: :class:`VllmFleet` drives running servers through their HTTP interface. It needs no vLLM installed.
"""

from ckpt_transport_vllm.extension import WorkerExtension
from ckpt_transport_vllm.fleet import VllmFleet

__all__ = ["VllmFleet", "WorkerExtension"]
