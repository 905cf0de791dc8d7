"""A copier brings tensors that are in memory into a pool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from ckpt_transport import dtypes
from ckpt_transport.checkpoint import tasks
from ckpt_transport.checkpoint.casts import casts, check_cast, turns_for_casts
from ckpt_transport.checkpoint.gathered_copies import GatheredCopies
from ckpt_transport.checkpoint.low_rank import Sum
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import Buffer, HostCopies, HostCopy, copy_batch, fence_on, has_copy_tables
from ckpt_transport.planning.values.manifest import TensorSpec

if TYPE_CHECKING:
    from ckpt_transport.checkpoint.arrangement import Arrangement
    from ckpt_transport.checkpoint.given_tensor import GivenTensor

T = TypeVar("T")
_GROUP_BYTES = 64 << 20
_MANY = 16
"""Tensors of a GPU are gathered where there are so many: a table is made for each set of them."""


def describe(tensors: Mapping[str, torch.Tensor]) -> list[TensorSpec]:
    """Describe these tensors as a checkpoint would declare them, in the order of the mapping.

    Args:
        tensors: as :func:`~ckpt_transport.checkpoint.given.given_tensors` returns them.

    Raises:
        CheckpointError: there are none, or one has a dtype that safetensors cannot hold.
    """
    if not tensors:
        raise CheckpointError("a version needs at least one tensor, and the mapping of tensors is empty")
    return [spec_of(name, tensor.dtype, dtypes.shape_of(tensor)) for name, tensor in tensors.items()]


def copy(
    tensors: Sequence[GivenTensor],
    arranged: Arrangement,
    pool: Buffer,
    executor: Executor,
    report: Callable[[int], None],
) -> None:
    """Copy what is given of each tensor to its offset in ``pool``. All is complete when this returns or raises.

    What lies on a GPU is copied in the order of the caller's current stream there, after whatever still writes the
    tensors, and gathered first where it is contiguous. What is contiguous on the CPU is copied, or cast, by all threads
    of ``executor``. The rest is copied by torch, which spreads it over its own threads, and adds what is to be added.

    Args:
        tensors: of any shape, stride and device, of a dtype in :data:`ckpt_transport.dtypes.TORCH`.
        arranged: where to in the pool.
        pool: where to.
        executor: copies.
        report: called in the caller's thread with the bytes of some tensors, when they are there.

    Raises:
        CheckpointError: torch cannot copy a tensor, or an element is too large for the type that it is to be cast to.
    """
    base, turns = pool.tensor.data_ptr(), turns_for_casts()
    contiguous: list[HostCopy] = []
    cast: list[Iterable[Callable[[], int]]] = []
    others: list[_TorchCopy] = []
    on_gpu: defaultdict[torch.device, list[_TorchCopy]] = defaultdict(list)
    for given, nbytes, offset in zip(tensors, arranged.sizes, arranged.offsets, strict=True):
        tensor = given.tensor
        if tensor.is_cpu and _is_a_run_of_bytes(tensor) and not given.added:
            if given.cast:
                cast.append(casts(given, _TorchCopy(given, pool, offset, nbytes).target(), turns))
            else:
                contiguous.append(HostCopy(base + offset, tensor.data_ptr(), nbytes))
        elif tensor.is_cuda and not given.added:
            on_gpu[tensor.device].append(_TorchCopy(given, pool, offset, nbytes))
        else:
            others.append(_TorchCopy(given, pool, offset, nbytes))
    from_gpus = [tasks_of for copies in on_gpu.values() for tasks_of in _from_gpu(copies)]
    from_host = [partial(copy_batch, batch) for batch in HostCopies.of(contiguous).in_batches()]
    for each in chain(others, *on_gpu.values()):
        check_cast(each.given)
    tasks.run([*_in_turns(from_gpus), *chain.from_iterable(cast), *from_host], executor, report)
    for other in others:
        other.do()
        report(other.nbytes)


def _is_a_run_of_bytes(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


class _TorchCopy(NamedTuple):
    """A tensor that torch copies to its offset in the pool."""

    given: GivenTensor
    pool: Buffer
    offset: int
    nbytes: int

    @property
    def is_plain(self) -> bool:
        """Whether the pool gets the bytes that the tensor has, one after the other, and there are some."""
        return bool(self.nbytes) and not self.given.cast and _is_a_run_of_bytes(self.given.tensor)

    def target(self) -> torch.Tensor:
        raw = self.pool.tensor[self.offset : self.offset + self.nbytes]
        return dtypes.as_tensor(raw, self.given.spec.dtype, dtypes.shape_of(self.given.tensor))

    def do(self) -> None:
        """
        Raises:
            CheckpointError: torch cannot; names the tensor.
        """
        try:
            if self.given.added:
                Sum(self.given.tensor, self.given.added).write(self.target())
            else:
                self.target().copy_(self.given.tensor.detach())
        except RuntimeError as error:
            raise CheckpointError(f"tensor '{self.given.spec.name}' cannot be copied: {error}") from error


def _from_gpu(copies: Sequence[_TorchCopy]) -> Iterator[list[Callable[[], int]]]:
    """What copies tensors of one GPU: what is gathered first, and what torch copies one by one."""
    device = copies[0].given.tensor.device
    plain = [copy for copy in copies if copy.is_plain] if has_copy_tables(device) else []
    if len(plain) < _MANY:
        plain = []
    else:
        tensors, pool = [copy.given.tensor for copy in plain], plain[0].pool.tensor
        try:
            yield GatheredCopies(tensors, [copy.offset for copy in plain], pool).tasks()
        except torch.OutOfMemoryError:
            plain = []
    others = [copy for copy in copies if not copy.is_plain] if plain else copies
    stream = torch.cuda.current_stream(device)
    yield [partial(_copy_from_gpu, group, stream) for group in _grouped(others)]


def _copy_from_gpu(group: Sequence[_TorchCopy], stream: torch.cuda.Stream) -> int:
    """Copy tensors of one device by one call, and wait for their end."""
    targets, sources = [copy.target() for copy in group], [copy.given.tensor.detach() for copy in group]
    with torch.cuda.stream(stream):
        try:
            torch._foreach_copy_(targets, sources, non_blocking=True)
        except RuntimeError:
            for copy in group:
                copy.do()
        fence_on(stream).synchronize()
    return sum(copy.nbytes for copy in group)


def _grouped(copies: Iterable[_TorchCopy]) -> Iterator[list[_TorchCopy]]:
    """Cut copies into groups of about 64 MiB, so that the next is got ready while one is copied."""
    group: list[_TorchCopy] = []
    nbytes = 0
    for copy in copies:
        group.append(copy)
        nbytes += copy.nbytes
        if nbytes >= _GROUP_BYTES:
            yield group
            group, nbytes = [], 0
    if group:
        yield group


def _in_turns(queues: Iterable[Iterable[T]]) -> Iterator[T]:
    """One of each queue after the other, so that all devices have something to do."""
    for row in zip_longest(*queues):
        yield from (each for each in row if each is not None)


def spec_of(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> TensorSpec:
    """Describe one tensor as a checkpoint would declare it.

    Raises:
        CheckpointError: safetensors cannot hold it; names it.
    """
    try:
        spec = TensorSpec(name, dtypes.name_of(dtype), shape)
        dtypes.nbytes(spec.dtype, spec.shape)
    except CheckpointError as error:
        raise CheckpointError(f"tensor '{name}': {error}") from error
    return spec
