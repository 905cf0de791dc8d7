"""Names that share memory in an engine must come with one value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import PlanMismatchError, UpdateAbortedError
from tests.fleet import SinkProcess, SinkSpec, fleet
from tests.leftovers import left_behind
from tests.patience import DEADLINE, PATIENT

Tensors = dict[str, torch.Tensor]
TIED = "tensors 0.weight and 1.weight have one memory in .* and different values"


def tied(seed: int, width: int = 256) -> torch.nn.Module:
    """Two layers with one weight."""
    torch.manual_seed(seed)
    first, second = torch.nn.Linear(width, width), torch.nn.Linear(width, width)
    second.weight = first.weight
    return torch.nn.Sequential(first, second)


def separate(seed: int, *, equal: bool) -> Tensors:
    """The tensors of ``tied(seed)``, each with memory of its own; the last element of one differs or not."""
    tensors = {name: tensor.clone() for name, tensor in tied(seed).state_dict().items()}
    if not equal:
        tensors["1.weight"][-1, -1] += 1
    return tensors


@pytest.fixture
def sink() -> Iterator[SinkProcess]:
    with fleet(SinkSpec(make=tied)) as (running,):
        yield running
    assert not left_behind()


def from_files(server: ParameterServer, version: str, tensors: Tensors, directory: Path) -> None:
    save_file(tensors, directory / f"{version}.safetensors")
    server.register(version, files=[directory / f"{version}.safetensors"])


def from_tensors(server: ParameterServer, version: str, tensors: Tensors, directory: Path) -> None:
    server.register(version, tensors=tensors)


def lent(server: ParameterServer, version: str, tensors: Tensors, directory: Path) -> None:
    server.lend(version, tensors)


@pytest.mark.parametrize("take_in", [from_files, from_tensors, lent])
def test_given_tied_tensors_with_different_values_then_they_are_refused_by_name_and_equal_ones_are_served(
    take_in: Callable[[ParameterServer, str, Tensors, Path], None], sink: SinkProcess, tmp_path: Path
) -> None:
    with ParameterServer(Config.load(transport="shm", **PATIENT)) as server:
        take_in(server, "different", separate(2, equal=False), tmp_path)
        with pytest.raises(UpdateAbortedError, match=TIED) as caught:
            server.update("different", [sink.address])
        assert isinstance(caught.value.__cause__, PlanMismatchError)
        state = sink.state()
        assert (state.version, state.tainted) == ("v1", "")
        assert state.holds(tied(1).state_dict())
        take_in(server, "equal", separate(2, equal=True), tmp_path)
        server.update("equal", [sink.address])
        assert sink.state().holds(separate(2, equal=True))


def test_given_one_of_two_tied_names_or_one_tensor_under_both_then_that_is_enough(sink: SinkProcess) -> None:
    with ParameterServer(Config.load(transport="shm", **PATIENT)) as server:
        one = separate(2, equal=True)
        del one["1.weight"]
        server.register("one", tensors=one)
        server.update("one", [sink.address])
        assert sink.state().holds(separate(2, equal=True))
        server.register("both", tensors=tied(3).state_dict())
        server.update("both", [sink.address])
        assert sink.state().holds(separate(3, equal=True))


@pytest.mark.parametrize("equal", [True, False])
def test_given_tied_names_of_two_source_ranks_then_they_are_compared_too(sink: SinkProcess, equal: bool) -> None:
    tensors = separate(2, equal=equal)
    coordinator = f"{sink.address}-coordinator"

    def serve(rank: int, own: Mapping[str, torch.Tensor]) -> None:
        config = Config.load(transport="shm", coordinator=coordinator, **PATIENT)
        with ParameterServer(config, rank=rank, world_size=2) as server:
            server.register("v2", tensors=own)
            server.update("v2", [sink.address])

    layers = [{name: tensor for name, tensor in tensors.items() if name.startswith(layer)} for layer in "01"]
    with ThreadPoolExecutor(2) as threads:
        leading, following = (threads.submit(serve, rank, layer) for rank, layer in enumerate(layers))
        errors = [done.exception(DEADLINE) for done in (leading, following)]
    if equal:
        assert errors == [None, None]
        assert sink.state().holds(tensors)
    else:
        assert [type(error) for error in errors] == [UpdateAbortedError, UpdateAbortedError]
        assert "0.weight and 1.weight" in str(errors[0])
        assert sink.state().holds(tied(1).state_dict())
