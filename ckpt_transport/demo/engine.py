"""One worker's part of the engine: requests in, replies out, the same steps in the same order on every worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ckpt_transport.demo import shards
from ckpt_transport.demo.checkpoint import Checkpoint, read_config
from ckpt_transport.demo.model import Cache, Transformer
from ckpt_transport.demo.parallel import TensorParallel
from ckpt_transport.demo.protocol import (
    Compare,
    Compared,
    Failed,
    Generate,
    Generated,
    Inspect,
    Inspected,
    Reply,
    Request,
)


class Engine:
    """A model with the weights of a checkpoint, as one of ``group``.

    Args:
        directory: the checkpoint.
        group: who shares the model.
    """

    def __init__(self, directory: Path, group: TensorParallel) -> None:
        self.group = group
        self.model = Transformer(read_config(directory), group)
        self.load = shards.Loader(self.model)
        with Checkpoint(directory) as checkpoint:
            self.load(checkpoint.tensors())
        self._cache = Cache(self.model.config, group)

    def serve_version(self, version: Callable[[], str]) -> None:
        """Ask ``version`` in every forward pass for the version that it computes with."""
        self.model.version = version

    def handle(self, request: Request) -> Reply:
        """This worker's reply. Bad requests are refused by all workers alike, before any of them computes."""
        match request:
            case Generate():
                return self._generate(request)
            case Compare():
                return self._compare(Path(request.directory))
            case Inspect():
                parameters = [parameter for _, parameter in self.model.named_parameters()]
                return Inspected(
                    self.group.rank,
                    self.model.version(),
                    len(parameters),
                    sum(parameter.numel() for parameter in parameters),
                    sum(parameter.nbytes for parameter in parameters),
                )
        return Failed(f"cannot serve {request}")

    def _generate(self, request: Generate) -> Reply:
        config = self.model.config
        if not request.prompt or request.max_tokens < 1:
            return Failed("a prompt needs a token, and max_tokens must be 1 or more")
        if not all(0 <= token < config.vocab_size for token in request.prompt):
            return Failed(f"tokens are numbers from 0 to {config.vocab_size - 1}")
        if len(request.prompt) + request.max_tokens > config.max_position_embeddings:
            return Failed(f"prompt and answer may have {config.max_position_embeddings} tokens together")
        self._cache.length = 0
        tokens, versions, slowest = list(request.prompt), [], 0.0
        for _ in range(request.max_tokens):
            begun = time.perf_counter()
            logits = self.model(tokens, self._cache)
            tokens.append(int(logits[-1].argmax()))
            versions.append(self._cache.version)
            slowest = max(slowest, time.perf_counter() - begun)
        return Generated(tuple(tokens[len(request.prompt) :]), versions[-1], tuple(versions), slowest)

    def _compare(self, directory: Path) -> Reply:
        try:
            with Checkpoint(directory) as checkpoint:
                found = list(shards.compare(self.model, checkpoint.part))
        except (OSError, KeyError, ValueError) as error:
            return Failed(f"cannot read the checkpoint {directory}: {error}")
        mismatches = {mismatch.parameter: mismatch.elements for mismatch in found if mismatch.elements}
        elements = sum(parameter.numel() for parameter in self.model.parameters())
        return Compared(self.group.rank, len(found), elements, mismatches)
