"""Given shards that are lent at each step, then what was found of them serves again, unless they are cut anew."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from ckpt_transport.checkpoint import Store
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import MemoryKind
from tests.looks import Looks


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Of one rank."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.fixture
def store() -> Iterator[Store]:
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        yield store


def cut(local: torch.Tensor, mesh: DeviceMesh, placement: Placement, rows: int = 4) -> DTensor:
    return DTensor.from_local(local, mesh, [placement], run_check=False, shape=torch.Size([rows, 3]), stride=(3, 1))


def test_given_shards_at_their_places_then_what_was_found_of_them_serves_again(mesh: DeviceMesh, store: Store) -> None:
    parts = [torch.ones(4, 3) for _ in range(100)]
    for parameters in (False, True):
        found = []
        for number in range(2):
            shards = {f"t{n}": cut(local, mesh, Shard(0)) for n, local in enumerate(parts)}
            if parameters:
                shards = {name: torch.nn.Parameter(shard) for name, shard in shards.items()}  # type: ignore[misc]
            found.append(store.lend(f"v{number}", shards).manifest)
            store.unregister(f"v{number}")
            for local in parts:
                local.add_(1)
        assert found[1].tensors is found[0].tensors


def test_given_the_same_elements_cut_in_another_way_then_they_are_looked_at_anew(
    mesh: DeviceMesh, store: Store
) -> None:
    local = torch.ones(4, 3)
    manifest = store.lend("shard", {"a": cut(local, mesh, Shard(0)), "b": torch.ones(1)}).manifest
    assert manifest.replicated == ("b",)
    manifest = store.lend("plain", {"a": local, "b": torch.ones(1)}).manifest
    assert manifest.replicated == ()
    manifest = store.lend("columns", {"a": cut(local, mesh, Shard(1)), "b": torch.ones(1)}).manifest
    assert manifest.replicated == ("b",)
    with pytest.raises(CheckpointError, match=r"this rank has \[4, 3\] of tensor .* and should have \[8, 3\]"):
        store.lend("of more rows", {"a": cut(local, mesh, Shard(0), rows=8), "b": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"this rank has \[4, 3\] of tensor .* and should have \[8, 3\]"):
        store.lend("copies", {"a": cut(local, mesh, Replicate(), rows=8), "b": torch.ones(1)})


def test_given_a_write_to_a_shard_after_it_was_lent_again_then_it_is_noticed(mesh: DeviceMesh, store: Store) -> None:
    local = torch.ones(4, 3)
    for version in ("v1", "v2"):
        (extent,) = store.lend(version, {"a": cut(local, mesh, Shard(0))}).extents
        extent.check()
    local.add_(1)
    with pytest.raises(CheckpointError, match="'a' was changed"):
        extent.check()


def test_given_shards_again_then_their_cuts_are_compared_and_not_computed(mesh: DeviceMesh, store: Store) -> None:
    shards = {f"t{number}": cut(torch.ones(4, 3), mesh, Shard(0)) for number in range(100)}
    with Looks() as first:
        store.lend("v1", shards)
    with Looks() as second:
        store.lend("v2", shards)
    assert sum(second.of_each(100).values()) < sum(first.of_each(100).values()) / 2, (first.counted, second.counted)


def test_given_many_shards_then_autograd_is_not_switched_off_for_each(
    mesh: DeviceMesh, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To do so takes as long as to ask a shard for its elements."""
    shards = {f"t{number}": cut(torch.ones(4, 3), mesh, Shard(0)) for number in range(100)}
    store.lend("v1", shards)
    switched: list[int] = []

    class Counted(torch.no_grad):
        def __enter__(self) -> None:
            switched.append(len(switched))
            super().__enter__()

    monkeypatch.setattr(torch, "no_grad", Counted)
    store.lend("v2", shards)
    assert len(switched) < 10
