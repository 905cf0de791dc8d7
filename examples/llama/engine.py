"""One worker's part of the engine: the same requests in the same steps on every worker, several at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from examples.llama import shards
from examples.llama.checkpoint import Checkpoint, read_config
from examples.llama.model import Context, Transformer
from examples.llama.parallel import TensorParallel
from examples.llama.protocol import Compare, Compared, Failed, Generate, Generated, Inspected, Reply

LARGEST_BATCH = 16


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
        self._jobs: dict[int, _Job] = {}

    def serve_version(self, version: Callable[[], str]) -> None:
        """Ask ``version`` in every forward pass for the version that it computes with."""
        self.model.version = version

    @property
    def busy(self) -> bool:
        """Whether there is something to generate."""
        return bool(self._jobs)

    def admit(self, number: int, request: Generate) -> Failed | None:
        """Take a request in, or refuse it: all workers do alike."""
        config = self.model.config
        if not request.prompt or request.max_tokens < 1:
            return Failed("a prompt needs a token, and max_tokens must be 1 or more")
        if not all(0 <= token < config.vocab_size for token in request.prompt):
            return Failed(f"tokens are numbers from 0 to {config.vocab_size - 1}")
        if len(request.prompt) + request.max_tokens > config.max_position_embeddings:
            return Failed(f"prompt and answer may have {config.max_position_embeddings} tokens together")
        self._jobs[number] = _Job(self.model, request)
        return None

    def step(self) -> Iterator[tuple[int, Generated]]:
        """One forward pass, for a token of every request; gives the requests that are finished."""
        batch = dict(islice(self._jobs.items(), LARGEST_BATCH))
        if not batch:
            return
        logits = self.model([job.context for job in batch.values()])
        for (number, job), rows in zip(batch.items(), logits, strict=True):
            job.take(int(rows[-1].argmax()))
            if job.finished:
                del self._jobs[number]
                yield number, job.answer()

    def inspect(self) -> Reply:
        """What is served."""
        parameters = list(self.model.parameters())
        return Inspected(
            self.group.rank,
            self.model.version(),
            len(parameters),
            sum(parameter.numel() for parameter in parameters),
            sum(parameter.nbytes for parameter in parameters),
        )

    def compare(self, request: Compare) -> Reply:
        """Every parameter against the files of a checkpoint."""
        try:
            with Checkpoint(Path(request.directory)) as checkpoint:
                found = list(shards.compare(self.model, checkpoint.part))
        except (OSError, KeyError, ValueError) as error:
            return Failed(f"cannot read the checkpoint {request.directory}: {error}")
        mismatches = {mismatch.parameter: mismatch.elements for mismatch in found if mismatch.elements}
        elements = sum(parameter.numel() for parameter in self.model.parameters())
        return Compared(self.group.rank, len(found), elements, mismatches)


class _Job:
    """A request that is being answered."""

    def __init__(self, model: Transformer, request: Generate) -> None:
        self.context = Context(model, request.prompt)
        self._prompt, self._end = len(request.prompt), len(request.prompt) + request.max_tokens
        self._versions: list[str] = []
        self._latest, self._slowest = time.monotonic(), 0.0

    def take(self, token: int) -> None:
        now = time.monotonic()
        self._slowest, self._latest = max(self._slowest, now - self._latest), now
        self._versions.append(self.context.version)
        self.context.tokens.append(token)

    @property
    def finished(self) -> bool:
        return len(self.context.tokens) == self._end

    def answer(self) -> Generated:
        tokens = tuple(self.context.tokens[self._prompt :])
        return Generated(tokens, self._versions[-1], tuple(self._versions), self._slowest)
