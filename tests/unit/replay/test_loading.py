"""Given a module with a loader, when versions follow each other, then each is in exactly, and how is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ckpt_transport import LoadedBucket
from ckpt_transport.planning import PlacedBytes
from ckpt_transport.replay import ModuleLoading
from tests.unit.recorded import buckets, specs_of

Pairs = Iterable[tuple[str, torch.Tensor]]
WIDTH = 16


@dataclasses.dataclass
class World:
    """A module, its loader, and how often the loader saw bytes of a real version."""

    module: torch.nn.Module
    calls: int = 0
    factor: float = 1.0

    def load(self, pairs: Pairs) -> None:
        for name, tensor in pairs:
            self.calls += 1
            self.put(name, tensor)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        index = int(name.removeprefix("w"))
        self.module.get_parameter("fused").data[index].copy_(tensor)

    def holds(self, version: dict[str, torch.Tensor]) -> bool:
        return all(
            torch.equal(self.module.get_parameter("fused")[int(name[1:])], tensor) for name, tensor in version.items()
        )


def version(seed: int, count: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"w{n}": torch.randn(WIDTH, WIDTH, generator=generator) for n in range(count)}


def world(kind: type[World] = World) -> World:
    module = torch.nn.Module()
    module.register_parameter("fused", torch.nn.Parameter(torch.zeros(6, WIDTH, WIDTH), requires_grad=False))
    return kind(module)


def arriving(tensors: dict[str, torch.Tensor], shape: str = "plan") -> Iterator[LoadedBucket]:
    """The version in two buckets, tensors whole."""
    specs = {spec.name: spec for spec in specs_of(tensors)}
    names = list(tensors)
    for number, part in enumerate((names[:2], names[2:])):
        ((raw, pieces),) = buckets({name: tensors[name] for name in part}, 1 << 16)
        places = [PlacedBytes(specs[name], offset, at, length) for name, offset, at, length in pieces]
        yield LoadedBucket((shape, number), raw, lambda places=places: places)  # type: ignore[misc]


def bring(loading: ModuleLoading, tensors: dict[str, torch.Tensor], shape: str = "plan") -> str:
    loading.prepare(specs_of(tensors))
    for bucket in arriving(tensors, shape):
        loading.load(bucket)
    loading.finish()
    return loading.apply_summary


def test_given_a_loader_then_it_runs_for_the_first_version_and_not_again() -> None:
    it = world()
    loading = ModuleLoading(it.module, it.load)
    told = bring(loading, version(1))
    assert "found to be the same" in told
    assert it.holds(version(1))
    calls = it.calls
    for seed in (2, 3, 4):
        assert bring(loading, version(seed)).startswith("replayed in")
        assert it.holds(version(seed))
    assert it.calls == calls


def test_given_verifying_always_then_the_loader_runs_each_time() -> None:
    it = world()
    loading = ModuleLoading(it.module, it.load, verify_always=True)
    for seed in (1, 2, 3):
        before = it.calls
        assert "found to be the same" in bring(loading, version(seed))
        assert it.calls - before >= 6
        assert it.holds(version(seed))


def test_given_another_manifest_then_it_is_recorded_again() -> None:
    it = world()
    loading = ModuleLoading(it.module, it.load)
    bring(loading, version(1))
    assert "recorded in" in bring(loading, version(2, count=5), "smaller plan")
    assert it.holds(version(2, count=5))
    assert "recorded in" in bring(loading, version(3))
    assert it.holds(version(3))


def test_given_a_parameter_that_moved_then_it_is_noticed() -> None:
    """Given a replay that was proved, when somebody binds the parameter to new memory, it is not written to the old."""
    it = world()
    loading = ModuleLoading(it.module, it.load)
    bring(loading, version(1))
    bring(loading, version(2))
    old = it.module.get_parameter("fused")
    it.module.register_parameter("fused", torch.nn.Parameter(torch.zeros(6, WIDTH, WIDTH), requires_grad=False))
    assert "recorded in" in bring(loading, version(3))
    assert it.holds(version(3))
    it.module.get_parameter("fused").data = old.data.clone()
    assert "recorded in" in bring(loading, version(4))
    assert it.holds(version(4))


def test_given_a_buffer_that_the_loader_looks_at_then_it_is_watched() -> None:
    class Mapped(World):
        def put(self, name: str, tensor: torch.Tensor) -> None:
            place = int(self.module.get_buffer("map")[int(name[1:])].item())
            self.module.get_parameter("fused").data[place].copy_(tensor)

    it = world(Mapped)
    it.module.register_buffer("map", torch.arange(6))
    loading = ModuleLoading(it.module, it.load)
    bring(loading, version(1))
    assert bring(loading, version(2)).startswith("replayed")
    it.module.get_buffer("map").copy_(torch.arange(5, -1, -1))
    assert "recorded in" in bring(loading, version(3))
    tensors = version(3)
    assert all(torch.equal(it.module.get_parameter("fused")[5 - n], tensors[f"w{n}"]) for n in range(6))


def test_given_a_loader_that_is_refused_then_it_goes_on_loading_and_says_why() -> None:
    class Branches(World):
        def put(self, name: str, tensor: torch.Tensor) -> None:
            super().put(name, tensor if tensor[0, 0] > -99 else -tensor)

    it = world(Branches)
    loading = ModuleLoading(it.module, it.load)
    for seed in (1, 2):
        assert "is looked at by the loader" in bring(loading, version(seed))
        assert it.holds(version(seed))


def test_given_a_loader_that_goes_around_torch_then_its_bytes_find_it_out() -> None:
    """Given a loader that reads a number where no operation shows it, then its own bytes stay."""

    class Lists(World):
        def put(self, name: str, tensor: torch.Tensor) -> None:
            self.factor = tensor.tolist()[0][0]
            self.module.get_parameter("fused").data[int(name[1:])].copy_(tensor * self.factor)

    it = world(Lists)
    loading = ModuleLoading(it.module, it.load)
    for seed in (1, 2):
        tensors = version(seed)
        assert "did not leave the bytes" in bring(loading, tensors)
        for name, tensor in tensors.items():
            assert torch.equal(it.module.get_parameter("fused")[int(name[1:])], tensor * tensor[0, 0].item())


def test_given_a_constant_that_hangs_on_values_then_it_is_found_out() -> None:
    class Fills(World):
        def put(self, name: str, tensor: torch.Tensor) -> None:
            self.module.get_parameter("fused").data[int(name[1:])].copy_(tensor)
            if name == "w5":
                self.module.get_parameter("scale").data.fill_(tensor.tolist()[0][0])

    it = world(Fills)
    it.module.register_parameter("scale", torch.nn.Parameter(torch.zeros(3), requires_grad=False))
    loading = ModuleLoading(it.module, it.load)
    for seed in (1, 2):
        tensors = version(seed)
        assert "fills scale with another number" in bring(loading, tensors)
        assert it.holds(tensors)
        assert bool((it.module.get_parameter("scale") == tensors["w5"][0, 0]).all())


def test_given_numpy_that_writes_a_parameter_unseen_then_it_is_left_to_the_loader() -> None:
    class Numpy(World):
        def put(self, name: str, tensor: torch.Tensor) -> None:
            if name == "w3":
                self.module.get_parameter("fused").numpy()[3] = tensor.numpy()
            else:
                super().put(name, tensor)

    it = world(Numpy)
    loading = ModuleLoading(it.module, it.load)
    for seed in (1, 2):
        assert "was not seen to use w3, nor to load all of fused" in bring(loading, version(seed))
        assert it.holds(version(seed))


def test_given_a_failure_half_way_then_nothing_of_the_old_record_is_relied_on() -> None:
    it = world()
    loading = ModuleLoading(it.module, it.load)
    bring(loading, version(1))
    loading.prepare(specs_of(version(2)))
    loading.load(next(arriving(version(2))))
    loading.abandon()
    told = bring(loading, version(3))
    assert "recorded in" in told
    assert it.holds(version(3))


def test_given_no_word_of_what_comes_then_the_loader_loads() -> None:
    it: Any = world()
    loading = ModuleLoading(it.module, it.load)
    for bucket in arriving(version(1)):
        loading.load(bucket)
    loading.finish()
    assert loading.apply_summary.startswith("loaded by the loader")
    assert it.holds(version(1))
