"""What a layout needs of a version: runs where that is little, whole tensors where it is not known or too fine."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from ckpt_transport.memory import StridedRange
from ckpt_transport.planning import Share, TensorSpec, digest_of
from ckpt_transport.replay import record, required_bytes

ROWS, COLUMNS = 128, 16
SPECS = [TensorSpec("a", "F32", (ROWS, COLUMNS)), TensorSpec("b", "F32", (ROWS, COLUMNS))]
NBYTES = ROWS * COLUMNS * 4


def share_of(rows: slice, columns: slice, *, exp: bool = False) -> Share:
    """Of a module that takes a block of ``a`` and nothing of ``b``."""
    shape = torch.empty(ROWS, COLUMNS)[rows, columns].shape
    module = torch.nn.Module()
    weight = torch.nn.Parameter(torch.zeros(shape))
    module.register_parameter("weight", weight)

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            if name == "a":
                block = tensor[rows, columns]
                weight.data.copy_(block.exp() if exp else block)

    share = required_bytes(record(module, load, SPECS).layout)
    assert share is not None
    assert share.specs == digest_of(SPECS)
    return share


def needed(rows: slice, columns: slice, *, exp: bool = False) -> dict[str, list[tuple[int, int]]]:
    """The runs that come to such a module, by name."""
    share = share_of(rows, columns, exp=exp)
    found: dict[str, list[tuple[int, int]]] = {}
    for name, start, nbytes in share.ranges:
        found.setdefault(name, []).append((start, nbytes))
    return found


EVERY = slice(None)


@pytest.mark.parametrize(
    ("rows", "columns", "runs"),
    [
        (EVERY, EVERY, [(0, NBYTES)]),
        (slice(32, 64), EVERY, [(32 * COLUMNS * 4, 32 * COLUMNS * 4)]),
        (slice(0, 4), slice(8, 16), [(row * COLUMNS * 4 + 32, 32) for row in range(4)]),
        (EVERY, slice(0, 8), [(0, NBYTES)]),
        (slice(0, 8, 2), EVERY, [(row * COLUMNS * 4, COLUMNS * 4) for row in range(0, 8, 2)]),
        (slice(5, 6), slice(3, 4), [((5 * COLUMNS + 3) * 4, 4)]),
    ],
)
def test_given_a_loader_that_copies_then_what_is_copied_is_needed_and_nothing_else(
    rows: slice, columns: slice, runs: list[tuple[int, int]]
) -> None:
    """A slice of columns has a run in every row: too many, so the tensor comes whole."""
    assert needed(rows, columns) == {"a": runs}


@pytest.mark.parametrize(
    ("columns", "slices"),
    [
        (slice(0, 8), [StridedRange(0, 32, ROWS, COLUMNS * 4)]),
        (slice(3, 4), [StridedRange(12, 4, ROWS, COLUMNS * 4)]),
        (slice(0, 16, 4), [StridedRange(0, 4, ROWS * 4, 16)]),
        (EVERY, []),
    ],
)
def test_given_columns_then_the_slice_is_named_that_is_read(columns: slice, slices: list[StridedRange]) -> None:
    """What is sent is the whole tensor; what is read of it where it lies is the slice."""
    share = share_of(EVERY, columns)
    assert share.slices == tuple(("a", each) for each in slices)
    assert share.nbytes == (sum(each.total for each in slices) or NBYTES)


def test_given_columns_that_are_read_twice_then_each_byte_is_named_once() -> None:
    """Given a loader that copies overlapping columns to two places, as of heads that several ranks share."""
    module = torch.nn.Module()
    module.register_buffer("left", torch.zeros(ROWS, 8))
    module.register_buffer("middle", torch.zeros(ROWS, 8))

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            if name == "a":
                module.get_buffer("left").copy_(tensor[:, :8])
                module.get_buffer("middle").copy_(tensor[:, 4:12])

    share = required_bytes(record(module, load, SPECS).layout)
    assert share is not None
    assert share.slices == (("a", StridedRange(0, 48, ROWS, COLUMNS * 4)),)
    assert list(share.reads()) == list(share.slices)


def test_given_a_tensor_that_goes_through_a_program_then_it_is_needed_whole() -> None:
    assert needed(slice(32, 64), EVERY, exp=True) == {"a": [(0, NBYTES)]}


def test_given_tensors_in_any_order_then_their_digest_is_the_same() -> None:
    assert digest_of(SPECS) == digest_of(reversed(SPECS))
    assert digest_of(SPECS) != digest_of(SPECS[:1])


def test_given_a_tensor_that_is_read_as_elements_of_two_sizes_then_it_is_needed_whole() -> None:
    """It might be cut within the larger ones."""
    specs = [TensorSpec("packed", "U8", (64,)), TensorSpec("other", "U8", (64,))]
    module = torch.nn.Module()
    module.register_buffer("bytes", torch.zeros(5, dtype=torch.uint8))
    module.register_buffer("words", torch.zeros(4, dtype=torch.int32))

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            if name == "packed":
                module.get_buffer("bytes").copy_(tensor[3:8])
                module.get_buffer("words").copy_(tensor[16:32].view(torch.int32))

    share = required_bytes(record(module, load, specs).layout)
    assert share is not None
    assert share.ranges == (("packed", 0, 64),)


def test_given_a_loader_that_takes_every_byte_then_that_is_no_share() -> None:
    module = torch.nn.Module()
    module.register_buffer("both", torch.zeros(2, ROWS, COLUMNS))

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            module.get_buffer("both")["ab".index(name)].copy_(tensor)

    assert required_bytes(record(module, load, SPECS).layout) is None
