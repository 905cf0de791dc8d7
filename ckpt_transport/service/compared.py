"""Two versions can be compared where their bytes lie, or are made, on the same devices."""

from __future__ import annotations

from ckpt_transport.checkpoint import StoredVersion
from ckpt_transport.deltas import ComparedBytes, CopiedBytes, MadeBytes, why_unlike
from ckpt_transport.memory import CPU, Buffer


def why_not_compared(base: StoredVersion, stored: StoredVersion) -> str:
    """Why a version cannot be compared with another as they lie; empty where it can."""
    name, of_base = stored.manifest.version, base.manifest.version
    if len(base.buffers) != len(base.extents):
        return f"'{of_base}' is lent, and only with a copy can another version be compared"
    if len(stored.buffers) == len(stored.extents):
        there = {buffer.tensor.device for buffer in stored.buffers}
    elif stored.made_on is not None:
        there = {stored.made_on}
    else:
        return f"'{name}' is lent, and is not made of tensors on one device, the same each time"
    if (copied := {buffer.tensor.device for buffer in base.buffers}) != there:
        where, elsewhere = (", ".join(sorted(map(str, devices))) for devices in (there, copied))
        return f"'{name}' is on {where}, and the copy of '{of_base}' on {elsewhere}"
    return why_unlike(base.manifest, stored.manifest)


def compared_bytes(stored: StoredVersion) -> list[ComparedBytes]:
    """The bytes of a version that can be compared, by extent."""
    device = stored.made_on
    return [
        CopiedBytes(extent) if isinstance(extent, Buffer) else MadeBytes(extent, device or CPU)
        for extent in stored.extents
    ]


Identity = tuple[object, tuple[int, ...]]
"""What tells the bytes of a version from those of others, and from what somebody has made of them since."""


def identity_of(stored: StoredVersion) -> Identity:
    """That of a version as it is now."""
    return stored.content, writes_to(stored)


def writes_to(stored: StoredVersion) -> tuple[int, ...]:
    """How often torch has written to the memory of a version."""
    tensors = [buffer.tensor for buffer in stored.buffers]
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
