"""Copy tables leave what torch's own copies leave."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport.memory import Addresses, CopyTable, StridedBytes
from ckpt_transport.memory.strided_bytes import ElementCopy

HOST = torch.device("cpu")
CHECKED = settings(deadline=None, max_examples=60)


def random_bytes(nbytes: int) -> torch.Tensor:
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8)


def at(*tensors: torch.Tensor) -> Addresses:
    return Addresses(HOST, [tensor.data_ptr() for tensor in tensors])


def element_copy(read: torch.Tensor, write: torch.Tensor, source: int = 0, target: int = 0) -> ElementCopy:
    """A copy between two views, with offsets into what they are views of."""
    size = read.itemsize
    return ElementCopy(
        source,
        target,
        int(read.storage_offset()) * size,
        int(write.storage_offset()) * size,
        size,
        tuple(read.shape),
        tuple(stride * size for stride in read.stride()),
        tuple(stride * size for stride in write.stride()),
    )


@st.composite
def strided(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes at any address, and a view of this shape and type of them in which no two elements share memory."""
    order = draw(st.permutations(range(len(shape))))
    gaps = [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in shape]
    shift, first = draw(st.integers(0, 7)), draw(st.sampled_from([0, 0, 1, 5]))
    strides, step = [0] * len(shape), 1
    for dimension in order:
        step *= gaps[dimension]
        strides[dimension] = step
        step *= shape[dimension]
    raw = random_bytes((first + step) * dtype.itemsize + 16)
    start = -raw.data_ptr() % 8 + shift
    raw = raw[start : start + (first + step) * dtype.itemsize]
    elements = np.ndarray((raw.numel() // dtype.itemsize,), f"V{dtype.itemsize}", raw.numpy())
    return raw, torch.from_numpy(elements.view(WORDS[dtype.itemsize])).as_strided(shape, strides, first)


WORDS = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}
DTYPES = st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64])
SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple)


@CHECKED
@given(st.data(), SHAPES, DTYPES)
def test_given_views_of_any_shape_strides_and_address_then_a_table_leaves_what_torch_leaves(
    data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    source, read = data.draw(strided(shape, dtype))
    target, write = data.draw(strided(shape, dtype))
    before = target.clone()
    table = CopyTable(HOST, StridedBytes.of([element_copy(read, write)]))
    table.copy(at(source), at(target))
    found = target.clone()
    target.copy_(before)
    write.copy_(read)
    assert torch.equal(found, target)


@CHECKED
@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_given_runs_of_any_length_at_any_address_then_their_bytes_arrive_and_no_other_is_touched(
    runs: list[tuple[int, int, int]],
) -> None:
    sources = [random_bytes(before + nbytes + 9) for nbytes, before, _ in runs]
    targets = [random_bytes(before + nbytes + 9) for nbytes, _, before in runs]
    expected = [target.clone() for target in targets]
    for (nbytes, read, write), source, target in zip(runs, sources, expected, strict=True):
        target[write : write + nbytes] = source[read : read + nbytes]
    numbers = np.arange(len(runs))
    nbytes, read, write = np.array(runs, np.int64).T
    CopyTable(HOST, StridedBytes.contiguous(numbers, numbers, read, write, nbytes)).copy(at(*sources), at(*targets))
    assert all(map(torch.equal, targets, expected))


def test_given_a_table_when_either_side_lies_elsewhere_then_the_same_table_copies_there() -> None:
    source, target = random_bytes(3000), random_bytes(3000)
    read, write = source[:2048].view(32, 64)[:, :24], target[:768].view(32, 24)
    table = CopyTable(HOST, StridedBytes.of([element_copy(read, write)]))
    for shift in (0, 8, 3, 1, 16):
        expected = target.clone()
        expected[shift : shift + 768] = source[shift : shift + 2048].view(32, 64)[:, :24].flatten()
        table.copy(at(source[shift:]), at(target[shift:]))
        assert torch.equal(target, expected)
    assert len(table._tiles) == 3, "it was cut for more than the places within a word"


@CHECKED
@given(st.data(), SHAPES, DTYPES)
def test_given_two_sides_when_they_are_exchanged_twice_then_all_is_as_it_was(
    data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    source, read = data.draw(strided(shape, dtype))
    target, write = data.draw(strided(shape, dtype))
    before = source.clone(), target.clone(), read.clone(), write.clone()
    table = CopyTable(HOST, StridedBytes.of([element_copy(read, write)]))
    table.exchange(at(source), at(target))
    assert torch.equal(write, before[2])
    assert torch.equal(read, before[3])
    table.exchange(at(source), at(target))
    assert torch.equal(source, before[0])
    assert torch.equal(target, before[1])


def test_given_nothing_to_copy_then_nothing_happens() -> None:
    empty = torch.empty((4, 0, 3), dtype=torch.int16)
    CopyTable(HOST, StridedBytes.of([element_copy(empty, empty)])).copy(at(empty), at(empty))
    CopyTable(HOST, StridedBytes.of([])).copy(at(empty), at(empty))
