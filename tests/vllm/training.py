"""A vLLM in this process is served by deltas while a small model is trained, and is what full updates make of it.

The trainer is another process: AdamW with FP32 weights, published in BF16 at each step. Half-way it has the step before
served again, and the step that was taken back once more. Then it brings the weights of each step whole, and the vLLM
must be, byte for byte, what it was after the delta.

With ``--packed`` vLLM packs linear layers whose names end so, which come whole beside each delta.

Usage: ``python -m tests.vllm.training [--packed ENDING] [--steps N]``.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import torch
import typer

from ckpt_transport import Config, ParameterServer, Report
from tests.patience import PATIENT
from tests.support import tiny_models
from tests.support.vllm_server import ENVIRONMENT
from tests.vllm.in_process import Answers, Engine, compare
from tests.vllm.packed import NOTHING, Products, pack_only, products_of

LEARNING_RATE = 2e-6
"""So small that few elements change in BF16, as in reinforcement learning."""
SETTINGS = {**PATIENT, "transport": "shm", "commit": "auto"}
ANSWER_SECONDS = 300
Step = dict[str, torch.Tensor]


def train(directory: Path, count: int) -> list[Step]:
    """The weights before training and after each step, in BF16."""
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    tokens = torch.randint(model.config.vocab_size, (4, 64))
    steps = [_published(model)]
    for _ in range(count):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        steps.append(_published(model))
    return steps


def _published(model: torch.nn.Module) -> Step:
    return {name: tensor.detach().bfloat16() for name, tensor in model.state_dict().items()}


def run_trainer(directory: Path, sink: str, count: int, pipe: Connection) -> None:
    """Train, bring each step by deltas, and then whole; wait for a word after each. Says what was brought, and how."""
    steps = train(directory, count)

    def told(what: str, report: Report | None) -> None:
        assert report is not None
        delta = report.delta
        pipe.send((what, None if delta is None or not delta.base else sorted(delta.whole)))
        pipe.recv()

    with ParameterServer(Config.load(**SETTINGS, delta="on")) as server:
        for number, step in enumerate(steps):
            told(f"step {number}", server.publish(f"step {number}", step, [sink]))
            if number == count // 2:
                server.rollback([sink])
                pipe.send((f"step {number - 1}", None))
                pipe.recv()
                told(f"step {number}", server.publish(f"step {number} again", step, [sink]))
    with ParameterServer(Config.load(**SETTINGS, delta="off")) as server:
        for number, step in enumerate(steps):
            told(f"step {number}", server.publish(f"whole {number}", step, [sink]))
    pipe.send(None)


def main(
    packed: Annotated[str, typer.Option(help="Let vLLM pack linear layers whose names end so.")] = NOTHING,
    count: Annotated[int, typer.Option("--steps", help="Steps of training.")] = 30,
) -> None:
    """Serve steps by deltas, and compare with all bytes of each."""
    os.environ.update(ENVIRONMENT)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    pack_only(packed)
    with tempfile.TemporaryDirectory() as folder:
        directory = tiny_models.write(Path(folder) / "model", 1, "qwen3")
        engine = Engine(directory)
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        trainer = multiprocessing.get_context("spawn").Process(
            target=run_trainer, args=(directory, engine.sink(), count, theirs), daemon=True
        )
        trainer.start()
        theirs.close()
        model = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()
        seen: dict[str, tuple[Answers, Products]] = {}
        whole: set[str] = set()
        by_delta = compared = 0
        while True:
            assert ours.poll(ANSWER_SECONDS), "the trainer does not answer"
            if (said := ours.recv()) is None:
                break
            what, modules = said
            answers, products = seen_now = engine.answers(), products_of(model)
            if what in seen:
                compare(answers, seen[what][0])
                assert all(torch.equal(each, seen[what][1][name]) for name, each in products.items()), what
                compared += 1
            seen[what] = seen_now
            by_delta += modules is not None
            whole.update(modules or ())
            ours.send("seen")
        trainer.join(ANSWER_SECONDS)
    assert len({tuple(sorted(each[0][1].items())) for each in seen.values()}) == count + 1, "each step changes some"
    assert by_delta >= count, "the first version comes whole, and so may the one after the rollback"
    beside = f", all of {len(whole)} modules beside each" if whole else ""
    print(f"{by_delta} versions came as deltas{beside}; {compared} were compared, and all were the same", flush=True)


if __name__ == "__main__":
    typer.run(main)
