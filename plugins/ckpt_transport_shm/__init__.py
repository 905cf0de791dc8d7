"""``shm``: a sink maps the source's POSIX shared memory and reads it in place; no byte is copied on the way."""

from ckpt_transport_shm.plugin import ShmTransport

__all__ = ["ShmTransport"]
