"""The part of the proof that is about tensors whose bytes are numbered block by block: each has one number.

Blocks that lie in the tensor, have no byte in common, and have as many bytes as the tensor, have each byte once. No row
is looked at: two blocks whose runs lie at one distance have a byte in common if they do within that distance, in a row
that both have; of others one has few runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_transport.errors import CoverageError, PlanError
from ckpt_transport.memory import StridedRange
from ckpt_transport.planning.values.plan import Plan


def check_orders(plan: Plan) -> None:
    """Every byte of a tensor that is numbered block by block is in one block.

    Raises:
        CoverageError: one is in none, or in two; names the tensor.
        PlanError: it is not known which tensor is meant.
    """
    specs = plan.manifest.specs if plan.manifest.ordered else {}
    ordered = [order.name for order in plan.manifest.ordered]
    if len(set(ordered)) != len(ordered):
        raise PlanError("a tensor is numbered in two ways")
    for held in plan.manifest.present:
        if held.spec.name in ordered:
            raise PlanError(f"bytes of {held.spec.name} are present, which is numbered block by block")
    for order in plan.manifest.ordered:
        if order.name not in specs:
            raise PlanError(f"{order.name} is numbered block by block, and is not there")
        spec = specs[order.name]
        if any(block.end > spec.nbytes for block in order.blocks):
            raise CoverageError(f"a block of {spec.name} lies outside of it")
        if (nbytes := sum(block.nbytes * block.runs for block in order.blocks)) != spec.nbytes:
            raise CoverageError(f"blocks of {spec.name} have {nbytes} bytes, and it has {spec.nbytes}")
        _check_apart(spec.name, order.blocks)


def _check_apart(name: str, blocks: Sequence[StridedRange]) -> None:
    near: list[StridedRange] = []
    for block in sorted(blocks):
        near = [other for other in near if other.end > block.start]
        for other in near:
            if meet(other, block):
                raise CoverageError(f"bytes of {name} are in two blocks: {other} and {block}")
        near.append(block)


def meet(one: StridedRange, other: StridedRange) -> bool:
    """Whether two strided ranges have a byte in common."""
    few, many = sorted((one, other), key=lambda each: each.runs)
    if few.runs > 1 and few.stride == many.stride:
        rows, column = divmod(many.start - few.start, few.stride)
        here = column < few.nbytes and max(rows, 0) < min(rows + many.runs, few.runs)
        return here or (column + many.nbytes > few.stride and max(rows + 1, 0) < min(rows + 1 + many.runs, few.runs))
    return any(_meets_run(many, few.start + number * few.stride, few.nbytes) for number in range(few.runs))


def _meets_run(part: StridedRange, start: int, nbytes: int) -> bool:
    """Whether a strided range has one of ``nbytes`` bytes from ``start`` on."""
    if part.runs == 1:
        return part.start < start + nbytes and start < part.start + part.nbytes
    first = max(-(-(start - part.start - part.nbytes + 1) // part.stride), 0)
    return first < part.runs and part.start + first * part.stride < start + nbytes
