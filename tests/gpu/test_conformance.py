"""The transports of GPUs keep every promise of the interface."""

from __future__ import annotations

import os
import time

import pytest

from ckpt_transport.errors import TransferTimeout
from ckpt_transport.testing import CHECKS, Check
from ckpt_transport.transport import Transport
from ckpt_transport_cuda_ipc import CudaIpcTransport
from ckpt_transport_nccl import NcclTransport
from ckpt_transport_nccl.library import Communicator, unique_id, version

NCCL_SHARES_A_GPU = os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1" and version() >= 23000
needs_nccl = pytest.mark.skipif(
    not NCCL_SHARES_A_GPU, reason="ranks that share a GPU need NCCL 2.30 and NCCL_MULTI_RANK_GPU_ENABLE=1"
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize(
    "transport",
    [pytest.param(CudaIpcTransport, id="cuda_ipc"), pytest.param(NcclTransport, id="nccl", marks=needs_nccl)],
)
def test_between_processes_on_one_gpu(transport: type[Transport], check: Check) -> None:
    check(transport)


def test_nccl_names_a_deadline_that_members_missed() -> None:
    """Given a communicator of two, when the other never comes, then the wait ends in time."""
    started = time.monotonic()
    with pytest.raises(TransferTimeout, match="did not turn up"):
        Communicator(unique_id(), 0, 2, started + 2, lambda: None)
    assert time.monotonic() < started + 30
