"""The digest of a bucket in many runs is made by a table, wherever the runs come to lie."""

from __future__ import annotations

import threading

import pytest
import torch

from ckpt_transport.errors import TransferError
from ckpt_transport.execution import digests, samples
from ckpt_transport.execution.run_digests import digest_of_runs
from ckpt_transport.memory import Addresses, MemoryRun, part_of
from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.memory.digest_table import DigestTable
from tests.unit.execution.fleets import check
from tests.unit.execution.test_apart import ApartFleet, apart

STARTS, SIZES = [0, 512, 4096], [300, 3000, 70_001]
PARTS = [(0, 300), (512, 16), (3008, 504), (4096 + 16, 70_001 - 16)]


@pytest.mark.parametrize("shift", [0, 16, 8, 3])
def test_given_a_bucket_when_its_runs_lie_elsewhere_then_the_digest_is_of_what_is_there(shift: int) -> None:
    """Given addresses that the kernel cannot read, too."""
    for _ in range(3):
        memory = [torch.randint(0, 256, (nbytes + 32,), dtype=torch.uint8) for nbytes in SIZES]
        aligned = [raw[-raw.data_ptr() % 16 + shift % 16 :][:nbytes] for raw, nbytes in zip(memory, SIZES, strict=True)]
        runs = [MemoryRun(at, raw) for at, raw in zip(STARTS, aligned, strict=True)]
        expected = digest([part_of(runs, at, nbytes) for at, nbytes in PARTS])
        assert as_bytes(digest_of_runs("shape", 3, runs, lambda: PARTS)) == as_bytes(expected)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[DigestTable]:
    """The tables that were launched; one at a time, since the interpreter changes what all threads see."""
    found: list[DigestTable] = []
    add, turn = DigestTable.add, threading.Lock()

    def noted(self: DigestTable, sums: torch.Tensor, memories: Addresses) -> None:
        with turn:
            found.append(self)
            add(self, sums, memories)

    monkeypatch.setattr(DigestTable, "add", noted)
    for module in (digests, samples):
        monkeypatch.setattr(module, "has_copy_tables", lambda device: True)
    return found


def test_given_tensors_that_lie_apart_then_tables_of_owners_and_sinks_agree_and_serve_again(
    launched: list[DigestTable],
) -> None:
    plan = apart()
    for _ in range(2):
        check(ApartFleet(plan))
    assert len(launched) > len(set(map(id, launched))) >= 2


def test_given_an_owner_that_changes_a_tensor_then_tables_find_another_digest(launched: list[DigestTable]) -> None:
    fleet = ApartFleet(apart())
    check(fleet)
    fleet.tensors[0].numpy()[-1] ^= 1
    outcomes = fleet.run()
    assert isinstance(outcomes[1].error, TransferError)
    assert "t0" in str(outcomes[1].error)
