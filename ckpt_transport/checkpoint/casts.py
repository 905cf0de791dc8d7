"""Tensors are cast on the host chunk by chunk, by all cores, and looked at while they are in the cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch

from ckpt_transport import dtypes
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import usable_cores

if TYPE_CHECKING:
    from ckpt_transport.checkpoint.given_tensor import GivenTensor

CHUNK_ELEMENTS = 512 << 10
"""Of a chunk, for each thread that torch uses: what it reads and writes of it stays in the cache of a core."""
BATCH_CHUNKS = 8
"""So many chunks that taking them costs nothing beside casting, and so few that no thread is left alone with many."""


def casts(given: GivenTensor, target: torch.Tensor, turns: threading.Semaphore) -> Iterator[Callable[[], int]]:
    """What several threads do to cast a tensor of the host; each returns how many bytes it has made.

    Args:
        given: a contiguous tensor.
        target: where it goes, of the type that it is to have.
        turns: lets as many run at once as :func:`turns_for_casts` says.

    Raises, when called:
        CheckpointError: as :func:`check_cast`.
    """
    chunk = CHUNK_ELEMENTS * torch.get_num_threads()
    sources, targets = given.tensor.detach().view(-1), target.view(-1)
    for start in range(0, sources.numel(), BATCH_CHUNKS * chunk):
        some = slice(start, start + BATCH_CHUNKS * chunk)
        yield partial(_cast, given, torch.split(targets[some], chunk), torch.split(sources[some], chunk), turns)


def turns_for_casts() -> threading.Semaphore:
    """As many casts at once as keep all cores busy: torch spreads each over the threads that it may use."""
    return threading.Semaphore(max(1, usable_cores() // torch.get_num_threads()))


def _cast(
    given: GivenTensor,
    targets: Iterable[torch.Tensor],
    sources: Iterable[torch.Tensor],
    turns: threading.Semaphore,
) -> int:
    done = 0
    with turns:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
            if _overflow_in(source, target.dtype):
                check_cast(given)
            done += target.nbytes
    return done


def check_cast(given: GivenTensor) -> None:
    """
    Raises:
        CheckpointError: an element is too large for the type that it is to be cast to; names the tensor.
    """
    if not given.computed:
        return
    to, given_as = dtypes.TORCH[given.spec.dtype], torch.bfloat16 if given.added else given.tensor.dtype
    if torch.finfo(to).max >= torch.finfo(given_as).max:
        return
    for elements in given.elements():
        if overflow := _overflow_in(elements, to):
            least, most = overflow
            raise CheckpointError(
                f"tensor '{given.spec.name}' has elements from {least:.4g} to {most:.4g}, which overflow in "
                f"{given.spec.dtype}; cast it to BF16, or leave it as it is"
            )


def _overflow_in(elements: torch.Tensor, to: torch.dtype) -> tuple[float, float] | None:
    """The least and the greatest of elements of which a finite one becomes infinite; None where none does."""
    if torch.finfo(to).max >= torch.finfo(elements.dtype).max or not elements.numel():
        return None
    least, most = (float(value) for value in elements.aminmax())
    if max(-least, most) <= torch.finfo(to).max:
        return None
    return (least, most) if bool((elements.to(to).isinf() & elements.isfinite()).any()) else None
