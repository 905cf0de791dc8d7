"""One worker's part of the engine: the same requests in the same steps on every worker, several at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from examples.llama import checkpoint
from examples.llama.messages import Compare, Compared, Failed, Generate, Generated, Inspected, Reply
from examples.llama.model import Context, Transformer
from examples.llama.parallel import TensorParallel

LARGEST_BATCH = 16


class Engine:
    """A model with the weights of a checkpoint, as one of ``group``.

    Args:
        directory: the checkpoint.
        group: who shares the model.
    """

    def __init__(self, directory: Path, group: TensorParallel) -> None:
        self.group = group
        self.model = Transformer(checkpoint.read_config(directory), group)
        self.load = checkpoint.Loader(self.model)
        self.load(checkpoint.read(directory))
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
        """Compute a token of every request in one forward pass; gives the requests that are finished."""
        batch = dict(islice(self._jobs.items(), LARGEST_BATCH))
        if not batch:
            return
        logits = self.model([job.context for job in batch.values()])
        for (number, job), rows in zip(batch.items(), logits, strict=True):
            job.take(int(rows[-1].argmax()))
            if job.finished:
                del self._jobs[number]
                yield number, job.answer()

    def inspect(self) -> Inspected:
        """Say what is served."""
        parameters = list(self.model.parameters())
        nbytes = sum(parameter.nbytes for parameter in parameters)
        return Inspected(self.group.rank, self.model.version(), len(parameters), nbytes)

    def compare(self, request: Compare) -> Reply:
        """Compare every parameter with the files of a checkpoint."""
        try:
            found = checkpoint.compare(self.model, Path(request.directory))
        except (OSError, KeyError, ValueError) as error:
            return Failed(f"cannot read the checkpoint {request.directory}: {error}")
        elements = sum(parameter.numel() for parameter in self.model.parameters())
        mismatches = {name: different for name, different in found.items() if different}
        return Compared(self.group.rank, len(found), elements, mismatches)


class _Job:
    """A request that is being answered."""

    def __init__(self, model: Transformer, request: Generate) -> None:
        self.context = Context(model, request.prompt)
        self._prompt, self._max_tokens = len(request.prompt), request.max_tokens
        self._versions: list[str] = []
        self._moments: list[float] = []

    def take(self, token: int) -> None:
        self.context.tokens.append(token)
        self._versions.append(self.context.version)
        self._moments.append(time.monotonic())

    @property
    def finished(self) -> bool:
        return len(self._moments) == self._max_tokens

    def answer(self) -> Generated:
        return Generated(tuple(self.context.tokens[self._prompt :]), tuple(self._versions), tuple(self._moments))
