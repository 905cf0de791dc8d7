"""Given a vLLM whose head is tied to its embedding, then a version may bring both, and must bring the embedding."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ckpt_transport.errors import PlanMismatchError
from ckpt_transport_vllm.ties import check_brought, tied_names
from ckpt_transport_vllm.updated_model import UpdatedModel

EMBEDDING = "model.embed_tokens.weight"
NAMES = (EMBEDDING, "model.layers.0.mlp.up_proj.weight")


class Text(torch.nn.Module):
    """Embedding and head as vLLM's models have them, as far as a pipeline's rank has them."""

    def __init__(self, embedding: torch.Tensor | None, head: torch.Tensor | None) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        for module, name, weight in ((self.model, "embed_tokens", embedding), (self, "lm_head", head)):
            part = torch.nn.Module()
            setattr(module, name, part)
            part.register_parameter("weight", None if weight is None else torch.nn.Parameter(weight))


def target(model: torch.nn.Module, *, tied: bool) -> UpdatedModel:
    return UpdatedModel(model, SimpleNamespace(hf_text_config=SimpleNamespace(tie_word_embeddings=tied)), None)


WEIGHT = torch.zeros(4, 2)
PREPACKED = torch.zeros(0)


@pytest.mark.parametrize(
    ("embedding", "head"), [(WEIGHT, WEIGHT), (WEIGHT, None), (None, WEIGHT), (None, None), (WEIGHT, PREPACKED)]
)
def test_given_a_tied_model_then_every_rank_of_a_pipeline_names_both(
    embedding: torch.Tensor | None, head: torch.Tensor | None
) -> None:
    (tied,) = tied_names(target(Text(embedding, head), tied=True), NAMES)
    assert tied == {EMBEDDING, "lm_head.weight", "model.lm_head.weight"}


@pytest.mark.parametrize(
    ("head", "tied"), [(torch.ones(4, 2), False), (torch.ones(4, 2), True)], ids=["not tied", "has a weight of its own"]
)
def test_given_a_head_of_its_own_then_nothing_is_tied(head: torch.Tensor, tied: bool) -> None:
    assert tied_names(target(Text(WEIGHT, head), tied=tied), NAMES) == ()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("transformer.wte.weight",), {"transformer.wte.weight", "lm_head.weight", "transformer.lm_head.weight"}),
        (("wte.weight",), {"wte.weight", "lm_head.weight"}),
        (("model.norm.weight",), None),
        ((EMBEDDING, "model.other.embed_tokens.weight"), None),
    ],
)
def test_given_tied_names_then_they_are_those_of_the_checkpoint(
    names: tuple[str, ...], expected: set[str] | None
) -> None:
    found = tied_names(target(Text(None, None), tied=True), names)
    assert found == (() if expected is None else (frozenset(expected),))


def test_given_the_head_without_the_embedding_then_the_version_is_refused_by_name() -> None:
    groups = tied_names(target(Text(WEIGHT, WEIGHT), tied=True), NAMES)
    check_brought(groups, NAMES, "e")
    check_brought(groups, [*NAMES, "lm_head.weight"], "e")
    with pytest.raises(PlanMismatchError, match=rf"brings lm_head\.weight and lacks tensor {EMBEDDING}"):
        check_brought(groups, ["lm_head.weight"], "e")
