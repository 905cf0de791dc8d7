"""``nccl``: broadcast between GPUs, over whatever NCCL finds between them."""

from ckpt_transport_nccl.plugin import NcclTransport

__all__ = ["NcclTransport"]
