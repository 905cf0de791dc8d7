"""Whatever becomes of the copy that versions are compared with, sinks serve what was brought."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.checkpoint import StoredVersion
from ckpt_transport.deltas import MadeBytes
from ckpt_transport.memory import Buffer
from ckpt_transport.planning import Manifest
from ckpt_transport.service.compared import why_not_compared
from ckpt_transport_torch import attach
from tests.deltas import base_of
from tests.fleet import model, weights
from tests.patience import PATIENT

BESIDE = Config.load(**PATIENT, delta="on", commit="auto", delta_base="beside")


def holds(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, tensors[name]) for name, tensor in module.state_dict().items())


def test_given_two_ranks_and_one_that_writes_while_a_version_waits_for_its_commit_then_that_is_no_base(
    tmp_path: Path,
) -> None:
    config = Config.load(**PATIENT, delta="on", commit="auto", coordinator=f"ipc://{tmp_path}/meet.sock")
    module = model(1)
    tensors = weights(2)
    own = [list(tensors)[rank::2] for rank in range(2)]
    with attach(module, version="v1", config=Config.load(**PATIENT)) as attachment, ThreadPoolExecutor(2) as threads:
        to = [attachment.address]
        with (
            ParameterServer(config, rank=0, world_size=2) as first,
            ParameterServer(config, rank=1, world_size=2) as second,
        ):
            servers = first, second

            def both(call: Any) -> list[Any]:
                return list(threads.map(call, range(2)))

            stored = both(lambda rank: servers[rank].register("A", tensors={name: tensors[name] for name in own[rank]}))
            jobs = both(lambda rank: servers[rank].stage("A", to))
            changed = own[1][0]
            stored[1].tensors()[changed].view(-1)[0] += 1
            both(lambda rank: jobs[rank].commit())
            assert holds(module, tensors)
            tensors[changed].view(-1)[0] += 1
            both(lambda rank: servers[rank].register("B", tensors={name: tensors[name] for name in own[rank]}))
            both(lambda rank: servers[rank].update("B", to))
            assert holds(module, tensors)


def test_given_no_memory_to_compare_in_then_everything_comes_in_the_same_call_and_deltas_when_there_is_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("the GPU is full")

    module, tensors = model(1), weights(2)
    with attach(module, version="v1", config=Config.load(**PATIENT)) as attachment, ParameterServer(BESIDE) as server:
        to = [attachment.address]
        server.publish("step-0", tensors, to)
        tensors["0.weight"][0, 0] += 1
        with monkeypatch.context() as patch:
            patch.setattr(MadeBytes, "parts", full)
            report = server.publish("step-1", tensors, to)
            assert base_of(report) == ""
            assert report is not None
            assert report.delta is not None
            assert "no memory to compare it: the GPU is full" in report.delta.reason
        assert holds(module, tensors)
        tensors["0.weight"][0, 1] += 1
        assert base_of(server.publish("step-2", tensors, to)) == "step-1"
        assert holds(module, tensors)


def test_given_a_first_step_in_inference_mode_then_steps_in_and_out_of_it_are_compared() -> None:
    module = model(1)
    odd = {name: tensor[..., :].clone() for name, tensor in weights(2).items()}
    with attach(module, version="v1", config=Config.load(**PATIENT)) as attachment, ParameterServer(BESIDE) as server:
        with torch.inference_mode():
            server.publish("step-0", odd, [attachment.address])
        for step in (1, 2):
            odd["0.bias"][step] += 1
            with torch.inference_mode(mode=step == 1):
                assert base_of(server.publish(f"step-{step}", odd, [attachment.address])) == f"step-{step - 1}"
            assert holds(module, odd)


def test_given_copies_on_two_devices_then_they_are_not_compared() -> None:
    def copy_on(device: str) -> StoredVersion:
        return StoredVersion(
            Manifest(f"on {device}", (), ()), (Buffer(torch.empty(256, dtype=torch.uint8, device=device)),)
        )

    assert why_not_compared(copy_on("cpu"), copy_on("cpu")) == ""
    assert why_not_compared(copy_on("meta"), copy_on("cpu")) == "'on cpu' is on cpu, and the copy of 'on meta' on meta"
