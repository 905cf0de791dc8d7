"""``torchrun ... -m ckpt_transport update``: the ranks share a checkpoint and find each other through torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from safetensors.torch import save_file

from tests.fleet import SinkSpec, fleet, weights
from tests.leftovers import left_behind


def checkpoint(directory: Path) -> Path:
    tensors = weights(2)
    names = list(tensors)
    save_file({name: tensors[name] for name in names[:5]}, directory / "a.safetensors")
    save_file({name: tensors[name] for name in names[5:]}, directory / "b.safetensors")
    return directory


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, capture_output=True, text=True, timeout=250, env=environment)


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_two_ranks_of_torchrun_when_they_update_two_sinks_then_rank_0_alone_speaks(
    tmp_path: Path, transport: str
) -> None:
    """Given two sinks, when torchrun starts two sources, then both sinks hold both halves, and one rank reports."""
    trace = tmp_path / "trace.json"
    with fleet(SinkSpec(), SinkSpec()) as sinks:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["-m", "ckpt_transport", "update", "--checkpoint", str(checkpoint(tmp_path)), "--version", "step-42"]
        command += [word for sink in sinks for word in ("--sink", sink.address)]
        done = run(*command, "--transport", transport, "--trace", str(trace))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("step-42 is served by 2 sinks") == 1
        assert "2 sources, 2 sinks, 1 host" in done.stdout
        assert all(sink.state().holds(weights(2)) for sink in sinks)

        asked = run(sys.executable, "-m", "ckpt_transport", "version", "--json", *[sink.address for sink in sinks])
        assert asked.returncode == 0, asked.stderr
        answers = msgspec.json.decode(asked.stdout)
        assert [answer["version"] for answer in answers.values()] == ["step-42", "step-42"]
    kinds = {event.get("cat") for event in msgspec.json.decode(trace.read_bytes())["traceEvents"]}
    assert {"transfer", "apply"} <= kinds
    assert not left_behind()


def test_given_ranks_of_torchrun_when_their_update_is_refused_then_the_exit_code_is_1_and_the_tensor_is_named(
    tmp_path: Path,
) -> None:
    """Given a sink with another model, then the command says what does not fit, and the sink goes on."""
    with fleet(SinkSpec(model={"layers": 7})) as (sink,):
        command = [sys.executable, "-m", "ckpt_transport", "update", "--checkpoint", str(checkpoint(tmp_path))]
        done = run(*command, "--version", "step-42", "--sink", sink.address)
        assert done.returncode == 1
        assert "lacks tensor 6.weight" in done.stderr
        assert sink.state().version == "v1"
