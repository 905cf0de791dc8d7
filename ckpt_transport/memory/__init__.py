"""Where bytes lie: named shared memory, private memory, and the buffer a transport registers."""

from ckpt_transport.memory.buffer import Buffer, MemoryKind
from ckpt_transport.memory.copy import copy_bytes
from ckpt_transport.memory.segment import Segment, SegmentName, sweep_leftovers

__all__ = ["Buffer", "MemoryKind", "Segment", "SegmentName", "copy_bytes", "sweep_leftovers"]
