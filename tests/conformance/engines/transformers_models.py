"""Models of transformers under test, which serve by ``generate`` and by continuous batching."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import transformers

from ckpt_transport import Config
from ckpt_transport.testing.engine import EngineUnderTest
from ckpt_transport_transformers import attach

PROMPT = list(range(1, 40))
PAGE = 8
"""Tokens; the prompt fills several pages, which later requests may share."""
TIMEOUT = 60
CHOICES = 8
GREEDY = transformers.GenerationConfig(do_sample=False, eos_token_id=127, pad_token_id=0)


def empty() -> Any:
    """A tiny model whose head is tied to its embeddings, with any weights."""
    shape = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "initializer_range": 0.3}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads)).eval()


@cache
def weights(version: int) -> Mapping[str, torch.Tensor]:
    """Made when no loop of batches runs, which takes random numbers from where these come from."""
    torch.manual_seed(version)
    state: Mapping[str, torch.Tensor] = empty().state_dict()
    return state


def model(version: int) -> Any:
    made = empty()
    made.load_state_dict(weights(version))
    return made


def likeliest(served: Any) -> tuple[int, ...]:
    """The tokens that may follow the prompt, by one forward pass."""
    with torch.no_grad():
        return tuple(served(torch.tensor([PROMPT])).logits[0, -1].topk(CHOICES).indices.tolist())


@cache
def said(version: int) -> tuple[int, ...]:
    return likeliest(model(version))


class TransformersUnderTest(EngineUnderTest):
    """A model that is called by several threads at once."""

    def __init__(self, config: Config) -> None:
        self.model, _ = model(1), weights(2)
        self.attached = attach(self.model, version="v1", config=config)
        self.sinks = [self.attached.address]

    def tensors(self, version: int) -> Mapping[str, torch.Tensor]:
        return weights(version)

    def misfit(self) -> Mapping[str, torch.Tensor]:
        return {name: tensor for name, tensor in weights(2).items() if name != "model.norm.weight"}

    def expected(self, version: int) -> object:
        return said(version)

    def ask(self) -> object:
        return likeliest(self.model)

    def ask_meanwhile(self, act: Callable[[], None]) -> object:
        hook = self.model.model.layers[1].register_forward_pre_hook(lambda *_: act())
        try:
            return likeliest(self.model)
        finally:
            hook.remove()

    def close(self) -> None:
        self.attached.close()


class BatchingUnderTest(TransformersUnderTest):
    """A model that serves by continuous batching, whose requests share the pages of equal prefixes."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        settings = transformers.ContinuousBatchingConfig(num_blocks=256, page_size=PAGE, max_batch_tokens=64)
        self._manager = self.model.init_continuous_batching(
            generation_config=GREEDY, continuous_batching_config=settings
        )
        self._manager.start()
        self._requests, self._turn = itertools.count(), threading.Lock()

    def expected(self, version: int) -> object:
        return said(version)[0]

    def ask(self) -> object:
        with self._turn:
            self._manager.add_request(PROMPT, request_id=f"{next(self._requests)}", max_new_tokens=1)
            result = self._manager.get_result(timeout=TIMEOUT)
            if result is None or result.error is not None:
                raise RuntimeError("no result" if result is None else result.error)
            return result.generated_tokens[0]

    def ask_meanwhile(self, act: Callable[[], None]) -> object:
        raise NotImplementedError("a batch is not made for one request")

    def close(self) -> None:
        self._manager.stop(hard_stop=True)
        super().close()
