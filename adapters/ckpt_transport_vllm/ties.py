"""Knows tied embeddings: the head computes with the weight of the embedding, and has no weight of its own.

vLLM loads the embedding then and passes over ``lm_head.weight``. Checkpoints often bring it all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch

from ckpt_transport import PlanMismatchError
from ckpt_transport_vllm.updated_model import UpdatedModel

HEAD = "lm_head"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
"""How the names of embeddings end, in checkpoints."""


def tied_names(target: UpdatedModel, names: Iterable[str]) -> tuple[frozenset[str], ...]:
    """What a version may call the one weight of embedding and head; nothing where they are not tied.

    Args:
        target: the model, or the part of it that a pipeline's rank has.
        names: of the tensors of its checkpoint; where that is not known, of its parameters.
    """
    embeddings = [name for name in names if name.endswith(EMBEDDINGS)]
    if len(embeddings) != 1 or not is_tied(target):
        return ()
    parents = embeddings[0].split(".")[:-2]
    prefixes = ("".join(f"{part}." for part in parents[:depth]) for depth in range(len(parents) + 1))
    return (frozenset([embeddings[0], *(f"{prefix}{HEAD}.weight" for prefix in prefixes)]),)


def is_tied(target: UpdatedModel) -> bool:
    """Whether the head has no weight of its own: as the configuration says, and as far as this rank has both."""
    if not getattr(target.model_config.hf_text_config, "tie_word_embeddings", False):
        return False
    weights = {name: getattr(module, "weight", None) for name, module in target.model.named_modules()}
    tensors = {name: weight for name, weight in weights.items() if isinstance(weight, torch.Tensor) and weight.numel()}
    heads = {weight.data_ptr() for name, weight in tensors.items() if name.rpartition(".")[2] == HEAD}
    embeddings = {weight.data_ptr() for name, weight in tensors.items() if f"{name}.weight".endswith(EMBEDDINGS)}
    return not heads or not embeddings or heads <= embeddings


def check_brought(groups: Iterable[frozenset[str]], brought: Collection[str], label: str) -> None:
    """See that a version brings the weight of each tied embedding under the name that vLLM loads.

    Raises:
        PlanMismatchError: a version brings the weight of a tied head and not that of the embedding, which vLLM loads.
    """
    for group in groups:
        embedding = next(name for name in group if name.endswith(EMBEDDINGS))
        heads = sorted(group.intersection(brought) - {embedding})
        if heads and embedding not in brought:
            raise PlanMismatchError(
                f"the version brings {heads[0]} and lacks tensor {embedding}, of which {label} takes the weight of both"
            )
