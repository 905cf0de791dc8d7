"""The examples of trainers: each trains, publishes its steps, and what is served computes what the trainer computes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from examples import trainers
from examples.trainers.model import loss_of, model
from tests.fleet import SinkSpec, fleet
from tests.leftovers import left_behind

FOLDER = Path(trainers.__file__).parent
NEEDS = {
    "deepspeed_zero3": "deepspeed",
    "fsdp2": "torch",
    "fsdp2_tensor_parallel": "torch",
    "megatron_core": "megatron",
    "peft_lora": "peft",
    "transformers_callback": "accelerate",
}
"""What each example trains with."""


def run(example: str, ranks: int, sink: str) -> str:
    """What an example says when ``ranks`` ranks have run it, under torchrun where they are several."""
    if find_spec(NEEDS[example]) is None:
        pytest.skip(f"{NEEDS[example]} is not installed")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *torchrun, "-m", f"examples.trainers.{example}", sink]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environ)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def trainee(seed: int) -> torch.nn.Module:
    """The examples' model, which knows no seed."""
    return model()


def llama(seed: int) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    from examples.trainers.transformers_callback import SIZES

    return LlamaForCausalLM(LlamaConfig(**SIZES))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("example", "ranks"),
    [
        ("fsdp2", 2),
        ("fsdp2", 4),
        ("fsdp2_tensor_parallel", 4),
        ("peft_lora", 1),
        ("megatron_core", 2),
        ("deepspeed_zero3", 2),
    ],
)
def test_given_a_trainer_then_its_example_brings_every_step_to_the_sink(example: str, ranks: int) -> None:
    with fleet(SinkSpec(make=trainee)) as (sink,):
        losses = [float(loss) for loss in re.findall(r"step-\d: loss (\S+?),?\s", run(example, ranks, sink.address))]
        assert losses
        assert losses == sorted(losses, reverse=True)
        state = sink.state()
        served = trainee(1)
        served.load_state_dict(state.tensors)
        assert float(loss_of(served).detach()) == pytest.approx(losses[-1], abs=2e-6)
        assert state.version == f"step-{len(losses)}"
    assert not left_behind()


def test_given_trainer_of_transformers_then_its_callback_brings_every_step_to_the_sink() -> None:
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    with fleet(SinkSpec(make=llama)) as (sink,):
        said = run("transformers_callback", 1, sink.address)
        assert re.findall(r"step-\d(?=: updated)", said) == ["step-1", "step-2", "step-3"]
        total = re.search(r"sum of weights (\S+)", said)
        assert total is not None
        tensors = sink.state().tensors
        assert sum(float(each.double().sum()) for each in tensors.values()) == pytest.approx(float(total[1]), abs=1e-6)
    assert not left_behind()


ELSEWHERE = {"ray_actors", "trl_async_grpo", "trl_grpo", "verl_manager"}
"""Those that need more than a fleet; ``tests/e2e/test_ray.py``, ``tests/vllm`` and ``tests/verl`` run them."""


@pytest.mark.parametrize("example", NEEDS)
def test_given_an_example_then_it_has_at_most_40_lines_and_a_test(example: str) -> None:
    assert len((FOLDER / f"{example}.py").read_text(encoding="utf-8").splitlines()) <= 40
    assert {file.stem for file in FOLDER.glob("*.py")} == {*NEEDS, *ELSEWHERE, "model", "__init__"}
