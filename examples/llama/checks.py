"""What is checked of a server whose weights were updated, and asked of it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import msgspec
import torch

from examples.llama import checkpoint
from examples.llama.messages import Compared, Generate, Generated, encode
from examples.llama.model import Context, Transformer
from examples.llama.parallel import TensorParallel
from examples.shared.clients import Answer, Ask

PROMPT = (11, 222, 1333, 404)
MAX_TOKENS = 12
LOGIT_TOLERANCE = 1e-3
"""How far sums in another order may move a logit; the distance to the second best token is usually far more."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Every parameter of every worker against a checkpoint's files.

    Attributes:
        version: name of the checkpoint.
        workers: how many took part.
        parameters, elements: how many were compared, over all workers.
        mismatches: elements that differ, by worker and parameter.
    """

    version: str
    workers: int
    parameters: int
    elements: int
    mismatches: dict[str, int]

    @classmethod
    def of(cls, version: str, compared: Sequence[Compared]) -> Comparison:
        """Add up what the workers found."""
        different = {f"worker {each.rank}: {name}": n for each in compared for name, n in each.mismatches.items()}
        return cls(
            version=version,
            workers=len(compared),
            parameters=sum(worker.parameters for worker in compared),
            elements=sum(worker.elements for worker in compared),
            mismatches=different,
        )

    def __str__(self) -> str:
        found = f"{len(self.mismatches)} differ" if self.mismatches else "all equal"
        compared = f"{self.parameters} parameters of {self.workers} workers, {self.elements:,} elements"
        return f"{self.version}: {compared}: {found}"

    def problems(self) -> Iterator[str]:
        """What did not hold."""
        if not self.elements:
            yield f"nothing was compared with {self.version}"
        for name, elements in self.mismatches.items():
            yield f"{elements:,} elements differ from {self.version}: {name}"


def asking(vocabulary: int, max_tokens: int = 8) -> Ask:
    """A client that asks to continue random prompts, whose tokens are below ``vocabulary``."""

    def ask(client: httpx.Client, number: int) -> Answer:
        request = Generate(tuple(random.choices(range(vocabulary), k=8)), max_tokens)
        response = client.post("/generate", content=encode(request)).raise_for_status()
        generated = msgspec.json.decode(response.content, type=Generated)
        return Answer(generated.moments, generated.versions)

    return ask


def confirms(directory: Path, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
    """Whether each token is the best after those before it, for a model that reads the files and is not split."""
    model = Transformer(checkpoint.read_config(directory), TensorParallel())
    checkpoint.Loader(model)(checkpoint.read(directory))
    (logits,) = model([Context(model, [*prompt, *tokens[:-1]])])
    logits = logits[len(prompt) - 1 :]
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return bool((logits.max(dim=1).values - chosen <= LOGIT_TOLERANCE).all())
