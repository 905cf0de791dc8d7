"""``cuda_ipc``: a sink sees the source's memory on the GPU they share, or on one that its own can read."""

from ckpt_transport_cuda_ipc.plugin import CudaIpcTransport

__all__ = ["CudaIpcTransport"]
