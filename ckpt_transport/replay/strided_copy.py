"""Reduces what is copied out of one bucket to as few strided copies as possible."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ckpt_transport import dtypes


class StridedCopy(NamedTuple):
    """A strided copy from a bucket to a target.

    Attributes:
        target: index into a layout's targets.
        shape: in elements.
        read, write: offsets in the bucket and in the target, in bytes.
        read_strides, write_strides: in bytes.
        read_dtype, write_dtype: safetensors' names.
    """

    target: int
    shape: tuple[int, ...]
    read: int
    write: int
    read_strides: tuple[int, ...]
    write_strides: tuple[int, ...]
    read_dtype: str
    write_dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        count = dtypes.TORCH[self.write_dtype].itemsize
        for length in self.shape:
            count *= length
        return count


class CutElementError(Exception):
    """A tensor was cut within an element, so its part cannot be copied by itself."""


def clip(copy: StridedCopy, begin: int, end: int) -> Iterator[StridedCopy]:
    """The parts of ``copy`` that read bytes ``begin`` to ``end`` of the bucket.

    Raises:
        CutElementError: an element lies across one of the ends.
    """
    size = dtypes.TORCH[copy.read_dtype].itemsize
    order = sorted(range(len(copy.shape)), key=lambda d: (-copy.read_strides[d], d))
    shape = tuple(copy.shape[d] for d in order)
    reads = tuple(copy.read_strides[d] for d in order)
    writes = tuple(copy.write_strides[d] for d in order)
    spans = [size]
    for count, stride in zip(reversed(shape), reversed(reads), strict=True):
        spans.append(spans[-1] + (count - 1) * stride)
    spans.reverse()

    def within(depth: int, read: int, write: int, fixed: tuple[int, ...]) -> Iterator[StridedCopy]:
        span = spans[depth]
        if read >= end or read + span <= begin:
            return
        if read >= begin and read + span <= end:
            kept = slice(depth, None)
            ones = (1,) * len(fixed)
            yield copy._replace(
                shape=ones + shape[kept],
                read=read,
                write=write,
                read_strides=fixed + reads[kept],
                write_strides=fixed + writes[kept],
            )
            return
        if depth == len(shape) or reads[depth] == 0:
            raise CutElementError
        count, stride, inner = shape[depth], reads[depth], spans[depth + 1]
        first = min(max(-(-(begin - read) // stride), 0), count)
        last = max(min((end - read - inner) // stride + 1, count), first)
        if first < last:
            yield copy._replace(
                shape=(*(1,) * len(fixed), last - first, *shape[depth + 1 :]),
                read=read + first * stride,
                write=write + first * writes[depth],
                read_strides=(*fixed, *reads[depth:]),
                write_strides=(*fixed, *writes[depth:]),
            )
        for index in (*range(first), *range(last, count)):
            yield from within(depth + 1, read + index * stride, write + index * writes[depth], (*fixed, 0))

    yield from within(0, copy.read, copy.write, ())


class PackedRows(NamedTuple):
    """Equally long runs of a tensor's bytes, at equal distances in it and one behind the other in a bucket.

    Attributes:
        start, at: where the first begins in the tensor, and in the bucket.
        nbytes: the length of each.
        runs: how many there are.
        stride: how far apart they begin in the tensor.
    """

    start: int
    at: int
    nbytes: int
    runs: int
    stride: int


def out_of_rows(copy: StridedCopy, rows: PackedRows) -> list[StridedCopy] | None:
    """The part of ``copy`` that reads these bytes, which it reads out of the tensor, as a copy out of the bucket.

    Returns: None where that is no single copy, so that each run has to be looked at.
    """
    dims = list(zip(copy.shape, copy.read_strides, copy.write_strides, strict=True))
    inner = dtypes.TORCH[copy.read_dtype].itemsize + sum((n - 1) * read for n, read, _ in dims if read < rows.stride)
    outer = [number for number, (n, read, _) in enumerate(dims) if read >= rows.stride and n > 1]
    row, column = divmod(copy.read - rows.start, rows.stride)
    if column >= rows.nbytes and column + inner <= rows.stride:
        return []
    if column + inner > rows.nbytes or len(outer) > 1 or any(dims[number][1] % rows.stride for number in outer):
        return None
    shape, strides, first = list(copy.shape), list(copy.read_strides), 0
    step = strides[outer[0]] // rows.stride if outer else 1
    if outer:
        first = max(-(-(0 - row) // step), 0)
        shape[outer[0]] = max(min((rows.runs - 1 - row) // step + 1, shape[outer[0]]) - first, 0)
        strides[outer[0]] = step * rows.nbytes
    row += first * step
    if 0 in shape or not 0 <= row < rows.runs:
        return []
    return [
        copy._replace(
            shape=tuple(shape),
            read=rows.at + row * rows.nbytes + column,
            write=copy.write + (first * copy.write_strides[outer[0]] if outer else 0),
            read_strides=tuple(strides),
        )
    ]


def simplified(copy: StridedCopy) -> StridedCopy:
    """The same copy in as few dimensions as possible, those of larger strides in the target first."""
    dims = [
        (count, read, write)
        for count, read, write in zip(copy.shape, copy.read_strides, copy.write_strides, strict=True)
        if count != 1
    ]
    dims.sort(key=lambda dim: (-dim[2], -dim[1]))
    joined: list[tuple[int, int, int]] = []
    for count, read, write in dims:
        if joined:
            before, outer_read, outer_write = joined[-1]
            if outer_read == read * count and outer_write == write * count:
                joined[-1] = before * count, read, write
                continue
        joined.append((count, read, write))
    if not joined:
        size = dtypes.TORCH[copy.write_dtype].itemsize
        joined.append((1, dtypes.TORCH[copy.read_dtype].itemsize, size))
    shape, reads, writes = zip(*joined, strict=True)
    return copy._replace(shape=shape, read_strides=reads, write_strides=writes)


def merge(copies: Iterable[StridedCopy]) -> list[StridedCopy]:
    """The same bytes in fewer copies.

    Runs that follow one another in bucket and target are joined; then copies of one geometry that lie at a constant
    distance from each other, in both, are rolled into one with one dimension more, until none is left that can.
    """
    left = _joined([simplified(copy) for copy in copies if 0 not in copy.shape])
    while True:
        fewer = _rolled(left)
        if len(fewer) == len(left):
            return fewer
        left = fewer


def _joined(copies: Sequence[StridedCopy]) -> list[StridedCopy]:
    """Contiguous copies without conversion, where one ends as the next begins."""
    done: list[StridedCopy] = []
    for copy in sorted(copies, key=lambda each: (each.target, each.read)):
        if done and _is_contiguous(copy) and _is_contiguous(done[-1]):
            last = done[-1]
            same = last.target == copy.target and last.write_dtype == copy.write_dtype
            if same and last.read + last.nbytes == copy.read and last.write + last.nbytes == copy.write:
                done[-1] = last._replace(shape=(last.shape[0] + copy.shape[0],))
                continue
        done.append(copy)
    return done


def _is_contiguous(copy: StridedCopy) -> bool:
    size = (dtypes.TORCH[copy.write_dtype].itemsize,)
    return copy.read_dtype == copy.write_dtype and copy.read_strides == copy.write_strides == size


def _rolled(copies: Sequence[StridedCopy]) -> list[StridedCopy]:
    alike: defaultdict[tuple[object, ...], list[StridedCopy]] = defaultdict(list)
    for copy in copies:
        key = copy.target, copy.shape, copy.read_strides, copy.write_strides, copy.read_dtype, copy.write_dtype
        alike[key].append(copy)
    done: list[StridedCopy] = []
    for group in alike.values():
        group.sort(key=lambda copy: (copy.write, copy.read))
        begin = 0
        while begin < len(group):
            end = begin + 1
            if end < len(group):
                step = _distance(group[begin], group[end])
                while end < len(group) and step[0] > 0 and _distance(group[end - 1], group[end]) == step:
                    end += 1
            done.append(_roll(group[begin:end]) if end - begin > 1 else group[begin])
            begin = end
    return done


def _distance(one: StridedCopy, other: StridedCopy) -> tuple[int, int]:
    return other.read - one.read, other.write - one.write


def _roll(copies: Sequence[StridedCopy]) -> StridedCopy:
    read, write = _distance(copies[0], copies[1])
    first = copies[0]
    return simplified(
        first._replace(
            shape=(len(copies), *first.shape),
            read_strides=(read, *first.read_strides),
            write_strides=(write, *first.write_strides),
        )
    )
