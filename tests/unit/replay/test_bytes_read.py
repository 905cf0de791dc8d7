"""Of a bucket that is brought to a device a replay reads its share, and no other byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ckpt_transport.replay.replay
from ckpt_transport.memory import MemoryRun, Runs, end_of
from ckpt_transport.memory.double_buffer import FindPart
from ckpt_transport.replay import Loader, record
from tests.unit.recorded import Lies, apart, replay, replays_as_it_loads, scramble, specs_of, state, together

RANKS = 2
WIDTH = 64
MATRICES = 6
NBYTES = WIDTH * WIDTH * 2
BYTE = 0xA5
"""What a staging buffer is full of."""


class Elsewhere:
    """Stages as a double buffer does, in memory of the host that was full of other bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stage(self, runs: Runs, part: FindPart) -> Runs:
        wanted = part()
        assert wanted is not None
        into = torch.full((end_of(runs),), BYTE, dtype=torch.uint8)
        with Counted() as counted:
            wanted.run(runs, into)
        assert counted.nbytes == wanted.nbytes
        read.append(counted.nbytes)
        return (MemoryRun(0, into),)


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that copies read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nbytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.nbytes += args[1].nbytes
        return func(*args, **(kwargs or {}))


read: list[int] = []


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    read.clear()
    monkeypatch.setattr(ckpt_transport.replay.replay, "DoubleBuffer", Elsewhere)


class Rank(torch.nn.Module):
    """Half of each matrix: rows of the even ones, columns of the odd ones."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(WIDTH // RANKS, WIDTH), (WIDTH, WIDTH // RANKS)]
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(torch.zeros(shapes[number % 2], dtype=torch.bfloat16), requires_grad=False)
            for number in range(MATRICES)
        )


def loader(module: Rank, rank: int) -> Loader:
    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            module.weights[int(name)].data.copy_(tensor.chunk(RANKS, dim=int(name) % 2)[rank])

    return load


def version() -> dict[str, torch.Tensor]:
    return {str(number): torch.randn(WIDTH, WIDTH).bfloat16() for number in range(MATRICES)}


@pytest.mark.parametrize("rank", range(RANKS))
def test_given_ranks_with_rows_and_columns_then_each_reads_half_of_a_bucket_and_all_is_right(rank: int) -> None:
    module = Rank()
    replays_as_it_loads(module, loader(module, rank), version())
    assert read[0] == MATRICES * NBYTES // RANKS


@pytest.mark.parametrize("lies", [together, apart])
def test_given_buckets_that_cut_tensors_then_all_of_them_together_bring_a_half(lies: Lies) -> None:
    module = Rank()
    tensors, load = version(), loader(module, 1)
    recording = record(module, load, specs_of(tensors))
    with torch.no_grad():
        load(tensors.items())
    expected = state(module)
    scramble(module)
    replay(recording, module, tensors, nbytes=5 * 1024, lies=lies)
    assert all(torch.equal(state(module)[name], expected[name]) for name in expected)
    assert sum(read) == MATRICES * NBYTES // RANKS


def whole(module: torch.nn.Module) -> Loader:
    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            module.get_parameter(name).data.copy_(tensor)

    return load


def test_given_a_rank_that_needs_everything_then_a_bucket_is_one_run_with_its_padding() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)).requires_grad_(False)
    tensors = {name: torch.randn_like(tensor) for name, tensor in module.state_dict().items()}
    replays_as_it_loads(module, whole(module), tensors, (1 << 20,))
    assert read[0] == 3 * 256 + 2 * 4


@pytest.mark.parametrize("columns", [1, 3])
def test_given_rows_of_a_long_run_each_then_they_are_brought_one_by_one(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("ckpt_transport.memory.partial_copy.LONG", 16)
    module = torch.nn.Linear(8, 4, bias=False).requires_grad_(False)
    tensors = {"weight": torch.randn(4, 8 * columns)}
    replays_as_it_loads(module, first_columns(module), tensors, (1 << 20, 256))
    assert read[0] == 4 * 8 * 4


def first_columns(module: torch.nn.Module) -> Callable[[Iterable[tuple[str, torch.Tensor]]], None]:
    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            module.get_parameter(name).data.copy_(tensor[:, :8])

    return load
