"""Memory is where bytes lie: named shared memory, private memory, and the buffers that transports register."""

from ckpt_transport.memory.backing import Backing
from ckpt_transport.memory.buffer import CONTIGUOUS, Buffer, MemoryKind
from ckpt_transport.memory.copy import copy_bytes, copy_each, copy_views
from ckpt_transport.memory.cores import usable_cores
from ckpt_transport.memory.devices import device_of, may_have_devices, name_of, use_device, visible_devices
from ckpt_transport.memory.double_buffer import DoubleBuffer
from ckpt_transport.memory.fence import Fence, drain, fence, fence_on, stream_for
from ckpt_transport.memory.free import CPU, default_budget
from ckpt_transport.memory.launch import Launch
from ckpt_transport.memory.pinning import pin
from ckpt_transport.memory.segment import Segment, SegmentName, sweep_leftovers
from ckpt_transport.memory.writable import read_only, unwritable, why_not_plain

__all__ = [
    "CONTIGUOUS",
    "CPU",
    "Backing",
    "Buffer",
    "DoubleBuffer",
    "Fence",
    "Launch",
    "MemoryKind",
    "Segment",
    "SegmentName",
    "copy_bytes",
    "copy_each",
    "copy_views",
    "default_budget",
    "device_of",
    "drain",
    "fence",
    "fence_on",
    "may_have_devices",
    "name_of",
    "pin",
    "read_only",
    "stream_for",
    "sweep_leftovers",
    "unwritable",
    "usable_cores",
    "use_device",
    "visible_devices",
    "why_not_plain",
]
