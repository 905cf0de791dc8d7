"""Worker extensions as others write them."""

from __future__ import annotations

from ckpt_transport_vllm import WorkerExtension


class OtherExtension:
    """Knows nothing of ckpt_transport."""

    def whose(self) -> str:
        return "somebody else's"


class BothExtension(OtherExtension, WorkerExtension):
    """Inherits from theirs and from ours."""
