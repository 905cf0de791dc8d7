"""Lends the thread that loads more cores, on CPUs.

vLLM binds a worker to some cores and leaves others to its front end, and serves with one thread per core that it has.
While forward passes are held, the front end has nothing to do: so the thread that loads may use its cores too.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch


@contextmanager
def all_cores(vllm_config: Any) -> Iterator[None]:
    """Give the calling thread the cores of vLLM's front end, for as long as the context lasts.

    Only where vLLM chose the cores itself, and only for a worker that has no others beside it.
    """
    wider = _cores_of_front_end(vllm_config)
    if not wider:
        yield
        return
    own, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with suppress(OSError):
        os.sched_setaffinity(0, own | wider)
        _set_threads(max(threads, len(own | wider)))
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)
        _set_threads(threads)


def _cores_of_front_end(vllm_config: Any) -> set[int]:
    from vllm import envs

    front_end = multiprocessing.parent_process()
    alone = vllm_config.parallel_config.world_size_across_dp == 1
    if not alone or front_end is None or front_end.pid is None:
        return set()
    if str(vllm_config.device_config.device) != "cpu" or envs.VLLM_CPU_OMP_THREADS_BIND != "auto":
        return set()
    return os.sched_getaffinity(front_end.pid)


def _set_threads(count: int) -> None:
    """As ``torch.set_num_threads``, which vLLM replaces on CPUs; of the calling thread."""
    set_num_threads: Any = torch._C.__dict__["set_num_threads"]
    set_num_threads(count)
