"""TRL's asynchronous GRPO with a vLLM server: rollouts go on while it trains, and weights travel by ckpt_transport.

Start ``VLLM_SERVER_DEV_MODE=1 vllm serve DIR --logprobs-mode processed_logprobs`` with ``--weight-transfer-config
'{"backend": "ckpt_transport"}'``, and then this: ``python -m examples.trainers.trl_async_grpo DIR URL FOLDER``.
"""

import sys
from collections.abc import Iterator
from typing import Any

import datasets
import torch
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer

from ckpt_transport import Mapping, ParameterServer, rules
from ckpt_transport_vllm import VllmFleet


class Transfer:
    """What TRL's trainer takes as ``weight_transfer``. An update pauses and resumes the server itself."""

    def __init__(self, urls: list[str]) -> None:
        self._urls, self._syncs = urls, 0

    def init_weight_transfer(self) -> None:
        self._server, self._fleet = ParameterServer(rank=0, world_size=1), VllmFleet(self._urls)

    def pause(self) -> None: ...

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        self._syncs += 1
        version = f"sync-{self._syncs}"
        self._server.register(version, tensors=iterator, mapping=Mapping.of(rules.Cast("BF16")))
        done = self._fleet.update(self._server, version)
        self._server.unregister(version)
        print(f"{version}: updated in {done.update.seconds * 1e3:.0f} ms" if done else "", flush=True)

    def resume(self) -> None: ...

    def destroy(self) -> None:
        self._fleet.close()
        self._server.close()


def letters(completions: list[Any], **_: Any) -> list[float]:
    """More letters are better. A function of a module, as rollouts are scored in a process of their own."""
    return [float(len({*completion[0]["content"]})) for completion in completions]


def main(model: str, url: str, folder: str) -> None:
    settings = AsyncGRPOConfig(
        folder, vllm_server_base_url=url, max_steps=3, learning_rate=1e-2, num_generations=4,
        per_device_train_batch_size=4, max_completion_length=8, max_inflight_tasks=8, report_to=[],
    )  # fmt: skip
    prompts = datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in ("hi", "you")])
    trainer = AsyncGRPOTrainer(model, letters, settings, prompts, weight_transfer=Transfer([url]))
    trainer.train()
    trainer.save_model(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
