"""A source that has published a step keeps no tensor of it: a trainer frees them, or offloads them, in between.

A sink keeps nothing of a delta that it does not serve.
"""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_transport import Config, ParameterServer, Sink, UpdateAbortedError, ask_version
from ckpt_transport.update.delta_engine import DeltaEngine
from ckpt_transport_torch.engine import TorchEngine
from tests.patience import DEADLINE, PATIENT

Kept = list["weakref.ref[Any]"]
BY_DELTAS = {"delta": "on", "delta_base": "beside", "commit": "staged"}


def step_of(module: torch.nn.Module, rank: int, value: float) -> tuple[dict[str, torch.Tensor], Kept]:
    """Every other tensor, and what tells whether anybody has its memory."""
    mine = list(module.state_dict().items())[rank::2]
    arrays = {name: np.full(tensor.shape, value, np.float32) for name, tensor in mine}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, list(map(weakref.ref, arrays.values()))


@pytest.mark.parametrize("settings", [{}, BY_DELTAS], ids=["everything", "deltas"])
def test_given_two_source_ranks_that_have_published_then_neither_keeps_a_tensor(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    config = Config.load(coordinator=f"ipc://{tmp_path}/meet.sock", transport="shm", **{**PATIENT, **settings})
    with (
        closing(Sink(TorchEngine(module), config=config)) as sink,
        ParameterServer(config, rank=0, world_size=2) as first,
        ParameterServer(config, rank=1, world_size=2) as other,
        ThreadPoolExecutor(1) as threads,
    ):
        address = sink.start().address
        for step in range(2):
            (mine, kept), (theirs, also_kept) = (step_of(module, rank, float(step)) for rank in range(2))
            joins = threads.submit(other.publish, f"step-{step}", theirs)
            first.publish(f"step-{step}", mine, [address])
            joins.result()
            del mine, theirs, joins
            gc.collect()
            assert not any(each() is not None for each in [*kept, *also_kept])
            assert all(torch.equal(each, torch.full_like(each, float(step))) for each in module.state_dict().values())


def fails() -> None:
    raise RuntimeError("not now")


@pytest.mark.parametrize("end", ["dropped", "failed"])
def test_given_a_delta_that_ends_before_its_commit_then_its_sink_keeps_nothing_of_it(end: str) -> None:
    module = torch.nn.Linear(64, 64)
    config = Config.load(**{**PATIENT, **BY_DELTAS})
    with closing(Sink(TorchEngine(module), config=config)) as sink, ParameterServer(config) as server:
        to = [sink.start().address]
        first = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        server.register("step-1", tensors=first)
        server.register("step-2", tensors=first | {"bias": first["bias"] + 1})
        server.update("step-1", to)
        if end == "dropped":
            server.stage("step-2", to).drop()
        else:
            with pytest.raises(UpdateAbortedError, match="not now"):
                server.update("step-2", to, before_hold=fails)
        assert ask_version(to[0], timeout=DEADLINE).version == "step-1"
        gc.collect()
        assert DeltaEngine not in map(type, gc.get_objects())
        assert torch.equal(module.state_dict()["bias"], first["bias"])
