"""transformers' Trainer: a callback brings the weights to engines after each step.

Usage: ``python -m examples.trainers.transformers_callback SINK_ADDRESS...``
"""

import sys
import tempfile
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from ckpt_transport import ParameterServer

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


class Publish(TrainerCallback):
    def __init__(self, server: ParameterServer, sinks: list[str]) -> None:
        self._server, self._sinks = server, sinks

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        report = self._server.publish(f"step-{state.global_step}", model.state_dict(), self._sinks)
        print(f"{report.version}: updated in {report.seconds * 1e3:.0f} ms" if report else "", flush=True)


def main(sinks: list[str], steps: int = 3) -> None:
    torch.manual_seed(0)
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (8, 16))]
    with tempfile.TemporaryDirectory() as folder, ParameterServer(rank=0, world_size=1) as server:
        settings = TrainingArguments(folder, max_steps=steps, use_cpu=True, report_to=[], save_strategy="no")
        trained = LlamaForCausalLM(LlamaConfig(**SIZES))
        Trainer(trained, settings, train_dataset=data, callbacks=[Publish(server, sinks)]).train()
        print(f"sum of weights {sum(float(each.double().sum()) for each in trained.state_dict().values()):.9f}")


if __name__ == "__main__":
    main(sys.argv[1:])
