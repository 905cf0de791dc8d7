"""Given an update, then an engine hears before its passes are held of each bucket that it will be given."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any

import pytest
import torch

from ckpt_transport import Config, LoadedBucket, ParameterServer, Sink
from ckpt_transport.memory import starts_of
from ckpt_transport.replay import BucketCopyPlan, BucketCopyPlans
from ckpt_transport_torch.engine import TorchEngine
from ckpt_transport_torch.loader_engine import LoaderEngine
from tests.patience import PATIENT
from tests.unit.torch_modules import holds, looks_up, net, version


class Foresees(TorchEngine):
    """Notes which buckets it hears of, and when, and which come."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.held = False
        self.foreseen: dict[object, object] = {}
        self.came: dict[object, object] = {}
        super().__init__(module)

    def foresee(self, buckets: Iterable[LoadedBucket]) -> None:
        assert not self.held
        self.foreseen = {bucket.key: (starts_of(bucket.runs), list(bucket.places())) for bucket in buckets}
        super().foresee(buckets)

    def hold(self) -> int:
        self.held = True
        return super().hold()

    def landing(self, pieces: LoadedBucket) -> None:
        return None

    def load(self, pieces: LoadedBucket) -> None:
        self.came[pieces.key] = starts_of(pieces.runs), list(pieces.places())
        super().load(pieces)

    def resume(self) -> float:
        self.held = False
        return super().resume()


@pytest.mark.parametrize("commit", ["in_place", "staged"])
@pytest.mark.parametrize(("transport", "lends"), [("shm", False), ("shm", True), ("gloo", False)])
def test_given_an_update_then_its_buckets_are_known_before_they_come(transport: str, lends: bool, commit: str) -> None:
    """Given buckets that are read where they lie, and such that pass through slots, in two updates."""
    module = torch.nn.Sequential(*(torch.nn.Linear(40, 40) for _ in range(8))).requires_grad_(False)
    engine = Foresees(module)
    config = Config.load(transport=transport, commit=commit, bucket_bytes=20_000, **PATIENT)
    with closing(Sink(engine, config=config)) as sink, ParameterServer(config) as server:
        sink.start()
        for value in (1, 2):
            take_in = server.lend if lends else server.register
            take_in("v", tensors={name: torch.full_like(each, value) for name, each in module.state_dict().items()})
            engine.came = {}
            server.update("v", [sink.address])
            server.unregister("v")
            assert engine.came
            assert engine.came == engine.foreseen
            assert all(bool((each == value).all()) for each in module.parameters())


class ForeseesByLoader(LoaderEngine):
    """Notes whether passes are held."""

    held = False

    def hold(self) -> int:
        self.held = True
        return super().hold()

    def resume(self) -> float:
        self.held = False
        return super().resume()


def test_given_a_loader_then_what_is_copied_of_its_buckets_is_found_out_before_passes_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given the first update, before which the loader is recorded, and one whose buckets are cut in another way."""
    module = net()
    engine = ForeseesByLoader(module, looks_up(module))
    found: list[bool] = []
    plan_of = BucketCopyPlans._plan

    def noted(self: BucketCopyPlans, *bucket: Any) -> BucketCopyPlan:
        found.append(engine.held)
        return plan_of(self, *bucket)

    monkeypatch.setattr(BucketCopyPlans, "_plan", noted)
    with closing(Sink(engine, config=Config.load(**PATIENT))) as sink:
        sink.start()
        for value, bucket_bytes in ((1, 1 << 20), (2, 2000)):
            config = Config.load(transport="gloo", commit="in_place", bucket_bytes=bucket_bytes, **PATIENT)
            with ParameterServer(config) as server:
                server.register("v", tensors=version(module, value))
                server.update("v", [sink.address])
            assert holds(module, version(module, value))
    assert len(found) > 1
    assert not any(found)
