"""Kernels are compiled before they are needed."""

from __future__ import annotations

import torch

from ckpt_transport.memory import compile_kernels, copy_table, has_copy_tables

GPU = torch.device("cuda", 0)


def test_given_a_gpu_that_has_warmed_up_then_its_kernels_are_compiled() -> None:
    copy_table._launch_of.cache_clear()
    compile_kernels(GPU)
    if has_copy_tables(GPU):
        assert copy_table._launch_of(False, GPU).compiled is not None
