"""``cuda_ipc``: a sink sees the source's slots on the GPU they share."""

from ckpt_transport_cuda_ipc.plugin import CudaIpcTransport

__all__ = ["CudaIpcTransport"]
