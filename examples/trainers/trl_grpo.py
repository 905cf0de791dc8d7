"""TRL's GRPO with a vLLM server: TRL's client generates as ever, and weights travel by ckpt_transport.

Start ``VLLM_SERVER_DEV_MODE=1 vllm serve DIR --logprobs-mode processed_logprobs --max-logprobs=-1``, and then this:
``python -m examples.trainers.trl_grpo DIR URL FOLDER``. It trains on two cores, too, where TRL's own client wants NCCL.
"""

import sys
from collections.abc import Iterator
from typing import Any

import datasets
import torch
import trl.generation.vllm_generation as trl_generation
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_client import VLLMClient

from ckpt_transport import Mapping, ParameterServer, rules
from ckpt_transport_vllm import VllmFleet


class Client(VLLMClient):
    """What TRL's trainers make in server mode."""

    def init_communicator(self, device: Any = None) -> None:
        self._server, self._fleet = ParameterServer(rank=0, world_size=1), VllmFleet([self.base_url])
        self._syncs = 0

    def update_named_params(self, metadata: Any, named_params: Iterator[tuple[str, torch.Tensor]]) -> None:
        self._syncs += 1
        version = f"sync-{self._syncs}"
        self._server.register(version, tensors=named_params, mapping=Mapping.of(rules.Cast("BF16")))
        done = self._fleet.update(self._server, version)
        self._server.unregister(version)
        print(f"{version}: updated in {done.update.seconds * 1e3:.0f} ms" if done else "", flush=True)

    def reset_prefix_cache(self) -> None:
        """An update has done so."""

    def close_communicator(self) -> None:
        self._fleet.close()
        self._server.close()


def main(model: str, url: str, folder: str) -> None:
    trl_generation.VLLMClient = Client
    settings = GRPOConfig(
        folder, use_vllm=True, vllm_mode="server", vllm_server_base_url=url, max_steps=2, learning_rate=1e-2,
        num_generations=4, per_device_train_batch_size=4, max_completion_length=8, use_cpu=True, bf16=False,
        report_to=[],
    )  # fmt: skip
    prompts = datasets.Dataset.from_list([{"prompt": text} for text in ("hello", "What is a bucket?")])
    trainer = GRPOTrainer(model, lambda completions, **_: [len({*text}) for text in completions], settings, prompts)
    trainer.train()
    trainer.vllm_generation.sync_weights()
    trainer.vllm_generation.vllm_client.close_communicator()
    trainer.save_model(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
