"""What a layout needs of a version: runs where that is little, whole tensors where it is not known or too fine."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from ckpt_transport.planning import TensorSpec, digest_of
from ckpt_transport.replay import record, required_bytes

ROWS, COLUMNS = 128, 16
SPECS = [TensorSpec("a", "F32", (ROWS, COLUMNS)), TensorSpec("b", "F32", (ROWS, COLUMNS))]
NBYTES = ROWS * COLUMNS * 4


def needed(rows: slice, columns: slice, *, exp: bool = False) -> dict[str, list[tuple[int, int]]]:
    """Of a module that takes a block of ``a`` and nothing of ``b``: runs by name."""
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
    """A slice of columns has a run in every row: too many, so the tensor is needed whole."""
    assert needed(rows, columns) == {"a": runs}


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
