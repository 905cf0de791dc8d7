"""How many threads read memory at once depends on the cores that a process may use, and on nothing else."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import torch

from ckpt_transport.memory import usable_cores
from ckpt_transport.memory.cores import MOST


def test_given_torch_kept_to_one_thread_then_all_cores_are_used() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert usable_cores() == min(len(os.sched_getaffinity(0)), MOST)
    finally:
        torch.set_num_threads(threads)


def test_given_a_thread_kept_to_one_core_then_one_is_used() -> None:
    def kept_to_one() -> int:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return usable_cores()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(kept_to_one).result(120) == 1
