"""A sink knows the digest of what it serves after a delta from what the delta has changed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ckpt_transport.engine import digest_of_served
from ckpt_transport.service.served_base import SPARSE_BYTES, ServedBase
from ckpt_transport.update.delta_engine import DeltaEngine
from ckpt_transport_torch import TorchEngine
from tests.deltas import delta_of, exchanged, staged

SIZE = 512


class Served:
    """A module of BF16 that takes deltas, and what its sink knows of it."""

    def __init__(self) -> None:
        self.module = torch.nn.Linear(SIZE, SIZE, dtype=torch.bfloat16)
        self.engine = TorchEngine(self.module)
        self.base = ServedBase(self.engine)
        self.base.forget(note=True, by=self.engine)
        self.base.note()

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.module.state_dict().items()}

    def takes(self, every: int) -> DeltaEngine:
        """A delta in which one element of so many has changed, exchanged."""
        old, new = self.state, self.state
        new["weight"].view(-1)[::every] += 1
        taking = staged(self.engine, *delta_of("v1", old, new))
        exchanged(taking)
        return taking

    def commits(self, taking: DeltaEngine, meanwhile: Callable[[], None] = lambda: None) -> str:
        """Note what is served; what objects to the next delta."""
        self.base.forget(note=True, by=taking)
        meanwhile()
        self.base.note()
        return self.base.objection()

    def writes(self) -> None:
        """Somebody writes to an element that no delta has changed."""
        self.module.weight.data[7, 9] += 1


def test_given_few_changes_then_the_digest_is_the_one_of_all_that_is_served_and_after_a_rollback_too() -> None:
    served = Served()
    before = served.base.digest
    taking = served.takes(1000)
    assert served.commits(taking) == ""
    assert served.base.digest == digest_of_served(served.engine.served_elements().tensors) != before
    exchanged(taking)
    assert served.commits(taking) == ""
    assert served.base.digest == before


def test_given_somebody_who_writes_right_after_a_commit_then_it_is_seen() -> None:
    served = Served()
    assert "somebody else has written" in served.commits(served.takes(1000), served.writes)


def test_given_many_changes_then_all_is_read_and_what_follows_is_known_from_changes_again() -> None:
    served = Served()
    assert served.commits(served.takes(SPARSE_BYTES // 4)) == ""
    assert served.commits(served.takes(1000)) == ""
    assert served.base.digest == digest_of_served(served.engine.served_elements().tensors)


def test_given_a_version_that_was_not_noted_then_the_next_one_is_read() -> None:
    served = Served()
    served.base.forget(note=True, by=served.takes(1000))
    assert served.commits(served.takes(900)) == ""
