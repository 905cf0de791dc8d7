"""Where bytes lie: named shared memory, private memory, and the buffer a transport registers."""

from ckpt_transport.memory.buffer import Buffer, MemoryKind
from ckpt_transport.memory.copy import HostCopier
from ckpt_transport.memory.segment import Segment, SegmentName, sweep_leftovers

__all__ = ["Buffer", "HostCopier", "MemoryKind", "Segment", "SegmentName", "sweep_leftovers"]
