"""Modules on a "GPU" of the interpreter get, by copy tables, what they get from torch's copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ckpt_transport.memory.copy_table
import ckpt_transport.replay.replay
import ckpt_transport_torch.engine
from ckpt_transport import LoadedBucket
from ckpt_transport.memory import CopyTable, ExpectedRuns, MemoryRun
from ckpt_transport.planning import PlacedBytes
from ckpt_transport_torch import TorchEngine
from tests.unit.recorded import replays_as_it_loads, specs_of
from tests.unit.torch_modules import bring, holds, version


@pytest.fixture(scope="module", autouse=True)
def tables_everywhere() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (ckpt_transport.replay.replay, ckpt_transport_torch.engine):
            patch.setattr(module, "has_copy_tables", lambda device: True)
        yield


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each launch of a table, whether it was an exchange."""
    found: list[bool] = []
    launch = CopyTable._launch

    def noted(self: CopyTable, exchange: bool, *sides: object) -> None:
        found.append(exchange)
        launch(self, exchange, *sides)  # type: ignore[arg-type]

    monkeypatch.setattr(CopyTable, "_launch", noted)
    return found


class Odd(torch.nn.Module):
    """Tensors of odd sizes, of one byte, tied, not contiguous, conjugate and none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.zeros(7, 5, dtype=torch.bfloat16), requires_grad=False)
        self.tied = self.first
        self.turned = torch.nn.Parameter(torch.zeros(4, 6).t(), requires_grad=False)
        self.register_buffer("byte", torch.zeros(1, dtype=torch.uint8))
        self.register_buffer("odd", torch.zeros(33, dtype=torch.uint8)[1:32])
        self.register_buffer("none", torch.zeros(0, 3))
        self.register_buffer("conjugate", torch.zeros(3, dtype=torch.complex64).conj())


def test_given_a_module_by_name_then_each_bucket_is_one_launch_and_all_is_right(launches: list[bool]) -> None:
    module = Odd()
    engine = TorchEngine(module)
    for value in (1, 2, 3):
        bring(engine, version(module, value))
        assert holds(module, version(module, value))
    assert launches == [False] * 3


def test_given_tensors_that_are_replaced_then_the_new_ones_are_written() -> None:
    module = Odd()
    engine = TorchEngine(module)
    bring(engine, version(module, 1))
    old, module.first = module.first, torch.nn.Parameter(module.first.clone(), requires_grad=False)
    module.tied = module.first
    bring(engine, version(module, 2))
    assert holds(module, version(module, 2))
    assert (old == 1).all()


def test_given_a_bucket_in_several_runs_when_they_come_elsewhere_then_they_are_read_there(launches: list[bool]) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)).requires_grad_(False)
    engine = TorchEngine(module)
    for value in (1, 2, 3):
        tensors = {name: torch.rand_like(tensor) + value for name, tensor in module.state_dict().items()}
        runs, places, at = [], [], 0
        for spec, tensor in zip(specs_of(tensors), tensors.values(), strict=True):
            raw = torch.empty(tensor.nbytes + value, dtype=torch.uint8)[value:]
            raw.copy_(tensor.view(-1).view(torch.uint8))
            runs.append(MemoryRun(at, raw))
            places.append(PlacedBytes(spec, 0, at, len(raw)))
            at += 256
        engine.begin()
        engine.confirm()
        engine.load(LoadedBucket("bucket", runs, lambda places=places: places))  # type: ignore[misc]
        engine.finish()
        engine.resume()
        assert holds(module, tensors)
    assert launches == [False] * 3


def test_given_buckets_that_are_known_before_they_come_then_their_tables_are_made_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given tensors of odd sizes in runs that begin at whole words, then nothing is cut when they come."""
    module = Odd()
    engine = TorchEngine(module)
    tensors = version(module, 2)
    places, at = [], 0
    for spec in specs_of(tensors):
        places.append(PlacedBytes(spec, 0, at, spec.nbytes))
        at += 256
    starts = tuple(place.at for place in places)
    engine.begin()
    engine.foresee([LoadedBucket("bucket", ExpectedRuns(starts), lambda: places)])
    made: list[object] = []
    monkeypatch.setattr(ckpt_transport.memory.copy_table, "tiles", lambda *sides: made.append(sides))
    runs = []
    for place, tensor in zip(places, tensors.values(), strict=True):
        raw = torch.empty(place.nbytes + 8, dtype=torch.uint8)
        raw = raw[-raw.data_ptr() % 8 :][: place.nbytes]
        raw.copy_(tensor.contiguous().resolve_conj().view(-1).view(torch.uint8))
        runs.append(MemoryRun(place.at, raw))
    engine.confirm()
    engine.load(LoadedBucket("bucket", runs, lambda: places))
    engine.finish()
    engine.resume()
    assert not made
    assert holds(module, tensors)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 12), st.booleans(), st.booleans()), min_size=1, max_size=5),
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([torch.bfloat16, torch.bfloat16, torch.float32]),
)
def test_given_a_loader_that_slices_turns_and_casts_then_its_replay_by_tables_leaves_what_it_leaves(
    parts: list[tuple[int, int, bool, bool]], dtype: torch.dtype, of: torch.dtype
) -> None:
    tensors = {f"t{n}": torch.randn(rows, 2 * columns).to(of) for n, (rows, columns, *_) in enumerate(parts)}
    module = torch.nn.Module()
    for number, (rows, columns, turned, _) in enumerate(parts):
        shape = (columns, rows) if turned else (rows, columns)
        module.register_parameter(f"p{number}", torch.nn.Parameter(torch.zeros(shape, dtype=dtype)))

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            _, columns, turned, second = parts[int(name[1:])]
            part = tensor.narrow(1, columns * second, columns)
            module.get_parameter(f"p{name[1:]}").data.copy_(part.t() if turned else part)

    replays_as_it_loads(module, load, tensors, (1 << 20, 256))
