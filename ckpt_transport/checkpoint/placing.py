"""Placing says where in an extent the bytes of given tensors lie."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from ckpt_transport.checkpoint.given_tensor import GivenTensor
from ckpt_transport.checkpoint.pool import lay_out
from ckpt_transport.memory import Buffer
from ckpt_transport.planning.values.manifest import PlacedTensor

CUT_RANGES = 4
"""A tensor of so many ranges is cut along another dimension than its first."""
SHORT_BYTES = 64 << 10
"""To read a shorter range in the memory of another process takes longer than to copy it twice."""


def lay_out_parts(parts: Sequence[GivenTensor]) -> tuple[list[int], int]:
    """Put what is given one after another, as :func:`lay_out` does; what continues a tensor follows it at once.

    Returns: where each starts, and the size of the extent.
    """
    first = [number for number, part in enumerate(parts) if not (number and _continues(parts[number - 1], part))]
    sizes = [part.nbytes for part in parts]
    starts, nbytes = lay_out(sum(sizes[low:high]) for low, high in pairwise([*first, len(parts)]))
    offsets: list[int] = []
    for start, low, high in zip(starts, first, [*first[1:], len(parts)], strict=True):
        offsets += accumulate(sizes[low : high - 1], initial=start)
    return offsets, nbytes


def _continues(part: GivenTensor, other: GivenTensor) -> bool:
    """Whether a part begins where one ends, so that both are one range of the bytes of a tensor."""
    last, first = part.ranges[-1], other.ranges[0]
    joins = last.runs == first.runs == 1 and last.end == first.start > 0
    return joins and part.spec == other.spec


def place(tensors: Sequence[GivenTensor], offsets: Sequence[int], extent: int = 0) -> list[PlacedTensor]:
    """Say where the bytes of these tensors lie in an extent, where each starts at its offset."""
    placed: list[PlacedTensor] = []
    for tensor, offset in zip(tensors, offsets, strict=True):
        for part in tensor.ranges:
            last = placed[-1] if placed and part.start and part.runs == 1 else None
            if (
                last is not None
                and last.runs == 1
                and last.start + last.nbytes == part.start
                and last.offset + last.nbytes == offset
                and last.spec == tensor.spec
            ):
                placed[-1] = PlacedTensor(tensor.spec, extent, last.offset, last.nbytes + part.nbytes, last.start)
            else:
                placed.append(PlacedTensor(tensor.spec, extent, offset, part.total, part.start, part.runs, part.stride))
            offset += part.total
    return placed


def why_gathered(placed: Sequence[PlacedTensor], offsets: Sequence[int], sizes: Sequence[int]) -> str:
    """Why what is placed is gathered and not read where it lies: some of it is joined of tensors that lie apart.

    Args:
        placed: as :func:`place` returns it.
        offsets, sizes: where each given tensor starts in the extent, ascending, and how long it is, in bytes.

    Returns: the reason, which names one; empty where there is none.
    """
    for part in placed:
        number = bisect_right(offsets, part.offset) - 1
        if part.offset + part.nbytes > offsets[number] + sizes[number]:
            return f"'{part.spec.name}' is joined of tensors that lie apart"
    return ""


def why_gathered_on_the_host(placed: Sequence[PlacedTensor], given: int) -> str:
    """Why it is gathered on the host, whose kernel reads ranges one by one: given tensors are cut into short ones."""
    nbytes = sum(part.nbytes for part in placed)
    if len(placed) < CUT_RANGES * given or nbytes >= SHORT_BYTES * len(placed):
        return ""
    return (
        f"they are cut into {len(placed):,} ranges of {nbytes // len(placed):,} bytes on average, and such short ones "
        "are gathered sooner than read one by one"
    )


def offsets_in(pool: Buffer, parts: Sequence[GivenTensor]) -> tuple[list[GivenTensor], list[int]] | None:
    """Where these lie in a pool that they are views of, ascending; None where one is computed, or has gaps."""
    if any(part.computed or not part.tensor.is_contiguous() for part in parts):
        return None
    base = pool.tensor.data_ptr()
    offsets = [part.tensor.data_ptr() - base if part.nbytes else 0 for part in parts]
    order = sorted(range(len(parts)), key=offsets.__getitem__)
    return [parts[number] for number in order], [offsets[number] for number in order]
