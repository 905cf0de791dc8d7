"""Who publishes a step has it lent where it can be, and copied elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from ckpt_transport import TensorShard
from ckpt_transport.checkpoint import Store
from ckpt_transport.service import intake
from ckpt_transport.service.intake import Intake, Intakes, choose_intake
from tests.looks import Looks

ON_HOST = [torch.zeros(1000), torch.zeros(3, 4)]
NOT_LENDABLE = [
    pytest.param(torch.zeros(4, 6).t(), id="strided"),
    pytest.param(torch.zeros(3, dtype=torch.complex64).conj(), id="conjugate"),
    pytest.param(torch.eye(3).to_sparse(), id="sparse"),
]


def test_given_runs_of_memory_then_they_are_lent() -> None:
    chosen = choose_intake(ON_HOST)
    assert chosen.lend
    assert chosen.why == "lent, because its tensors can be sent from where they lie"


@pytest.mark.parametrize("tensor", NOT_LENDABLE)
def test_given_a_tensor_whose_bytes_lie_apart_then_all_are_registered(tensor: torch.Tensor) -> None:
    chosen = choose_intake([*ON_HOST, tensor])
    assert not chosen.lend
    assert "not contiguous" in chosen.why


def test_given_nothing_then_it_is_registered() -> None:
    assert not choose_intake([]).lend


def test_given_shards_like_those_of_the_step_before_then_nobody_asks_how_each_lies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given DTensors and a part, then they are looked at anew when they have another form."""
    looked: list[int] = []

    def looks(parts: Sequence[torch.Tensor]) -> Intake:
        looked.append(len(parts))
        return choose_intake(parts)

    monkeypatch.setattr(intake, "choose_intake", looks)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        intakes = Intakes(lambda values: False)
        for columns in (3, 3, 6):
            rows = 12 // columns
            weights: dict[str, object] = {
                f"t{number}": DTensor.from_local(torch.ones(rows, columns), mesh, [Shard(0)], run_check=False)
                for number in range(10)
            }
            weights["part"] = TensorShard(torch.ones(5), (10,), (0,))
            assert intakes.of(weights, None).lend  # type: ignore[arg-type]
    finally:
        dist.destroy_process_group()
    assert looked == [11, 11]


def test_given_tensors_like_those_of_the_step_before_then_each_is_only_asked_whether_it_is_nested() -> None:
    intakes = Intakes(lambda values: False)
    for _ in range(2):
        weights = {f"t{number}": torch.ones(5) for number in range(1000)}
        with Looks() as looks:
            assert intakes.of(weights, None).lend
    assert looks.of_each(1000) == Counter(is_nested=1)
    assert not intakes.of(weights | {"t0": torch.ones(3, 2).t()}, None).lend
    assert intakes.of(weights, None).lend


def test_given_tensors_that_were_lent_before_then_the_first_that_are_published_are_recognised() -> None:
    with Store() as store:
        intakes = Intakes(store.lends_such)
        weights = {f"t{number}": torch.ones(5) for number in range(1000)}
        store.lend("warm", weights)
        store.unregister("warm")
        with Looks() as looks:
            assert intakes.of(weights, None).lend
        assert looks.of_each(1000) == Counter(is_nested=1)
        assert not intakes.of(weights | {"t0": torch.ones(3, 2).t()}, None).lend
