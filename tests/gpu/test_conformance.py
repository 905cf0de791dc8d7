"""The transports of GPUs keep every promise of the interface."""

from __future__ import annotations

import os

import pytest

from ckpt_transport.testing import CHECKS, Check
from ckpt_transport.transports.interface import Transport
from ckpt_transport_cuda_ipc import CudaIpcTransport
from ckpt_transport_nccl import NcclTransport
from ckpt_transport_nccl.library import version

NCCL_SHARES_A_GPU = os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1" and version() >= 23000
needs_nccl = pytest.mark.skipif(
    not NCCL_SHARES_A_GPU, reason="ranks that share a GPU need NCCL 2.30 and NCCL_MULTI_RANK_GPU_ENABLE=1"
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize(
    "transport",
    [pytest.param(CudaIpcTransport, id="cuda_ipc"), pytest.param(NcclTransport, id="nccl", marks=needs_nccl)],
)
def test_given_a_transport_between_processes_of_one_gpu_then_it_keeps_every_promise(
    transport: type[Transport], check: Check
) -> None:
    check(transport)
