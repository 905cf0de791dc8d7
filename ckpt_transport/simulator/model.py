"""A model file says which shapes a model has; its engines' sharding says which bytes each of them needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import lcm
from pathlib import Path

import msgspec

from ckpt_transport.checkpoint.checkpoint import CheckpointFile, FileStamp
from ckpt_transport.checkpoint.header import TensorEntry
from ckpt_transport.errors import ConfigError
from ckpt_transport.planning import Share, TensorSpec, digest_of
from ckpt_transport.simulator.cluster import Several, read

EXPERT = re.compile(r"\.experts\.(\d+)\.")
BY_COLUMNS = re.compile(r"\.(o_proj|down_proj|wo|w2)\.")
"""Weights of which every rank takes columns: no range of bytes, so it is sent all of them."""
REPLICATED = re.compile(r"norm|\.gate\.|router")


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[model]`` of a model file, from which shapes are made.

    Attributes:
        layers: how many.
        hidden: width.
        experts: in each layer; 0 for a dense model.
        expert_hidden: width within an expert, or within a dense layer.
        vocabulary: rows of the embedding.
        dtype: of weights, as safetensors calls it. Those of F8_E4M3 have scales of blocks of 128 x 128.
        name: what people call it.
    """

    layers: Several
    hidden: Several
    expert_hidden: Several
    experts: int = 0
    vocabulary: Several = 128_000
    dtype: str = "BF16"
    name: str = "model"

    def specs(self) -> Iterator[TensorSpec]:
        """Every tensor of the model."""
        wide, narrow = self.hidden, self.expert_hidden
        yield TensorSpec("model.embed_tokens.weight", "BF16", (self.vocabulary, wide))
        for layer in range(self.layers):
            before = f"model.layers.{layer}"
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                yield from self._weight(f"{before}.self_attn.{name}", wide, wide)
            yield TensorSpec(f"{before}.input_layernorm.weight", "BF16", (wide,))
            if self.experts:
                yield TensorSpec(f"{before}.mlp.gate.weight", "BF16", (self.experts, wide))
            blocks = [f"{before}.mlp.experts.{number}" for number in range(self.experts)] or [f"{before}.mlp"]
            for block in blocks:
                yield from self._weight(f"{block}.gate_proj", narrow, wide)
                yield from self._weight(f"{block}.up_proj", narrow, wide)
                yield from self._weight(f"{block}.down_proj", wide, narrow)
        yield TensorSpec("lm_head.weight", "BF16", (self.vocabulary, wide))

    def _weight(self, name: str, rows: int, columns: int) -> Iterator[TensorSpec]:
        yield TensorSpec(f"{name}.weight", self.dtype, (rows, columns))
        if self.dtype == "F8_E4M3":
            yield TensorSpec(f"{name}.weight_scale_inv", "F32", (-(-rows // 128), -(-columns // 128)))

    def files(self) -> tuple[CheckpointFile, ...]:
        """The checkpoint it would be, if it were written into one file."""
        entries: list[TensorEntry] = []
        end = 0
        for spec in self.specs():
            entries.append(TensorEntry(spec, end, spec.nbytes))
            end += spec.nbytes
        return (CheckpointFile(Path(self.name), FileStamp(0, 0, end, 0), tuple(entries)),)


def model_of(path: Path) -> Model:
    """The model of a file with a table ``[model]``.

    Raises:
        ConfigError: it cannot be read, or says something that means nothing.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model file '{path}' cannot be read: {error}") from error
    return read(text, str(path), Model, "model")


def shares_of(specs: Sequence[TensorSpec], tensor_parallel: int, expert_parallel: int) -> tuple[Share, ...]:
    """What the ranks of one engine need, in turn: rows of weights, and some of the experts.

    Sink number n of the cluster has the share of number n, counted round. Without sharding there are none: every sink
    needs everything.
    """
    if tensor_parallel == expert_parallel == 1:
        return ()
    digest = digest_of(specs)
    most = max((int(found[1]) for spec in specs if (found := EXPERT.search(spec.name))), default=-1) + 1
    block = -(-most // expert_parallel)
    return tuple(
        Share(
            digest,
            tuple(
                needed
                for spec in specs
                for needed in _needed(
                    spec, rank % tensor_parallel, tensor_parallel, rank % expert_parallel, block, expert_parallel
                )
            ),
        )
        for rank in range(lcm(tensor_parallel, expert_parallel))
    )


def _needed(
    spec: TensorSpec, row_part: int, row_parts: int, expert_part: int, block: int, expert_parts: int
) -> Iterator[tuple[str, int, int]]:
    """What a rank needs of one tensor."""
    expert = EXPERT.search(spec.name)
    if expert and expert_parts > 1:
        if int(expert[1]) // block == expert_part:
            yield spec.name, 0, spec.nbytes
        return
    cut = len(spec.shape) > 1 and not spec.shape[0] % row_parts
    if not cut or BY_COLUMNS.search(spec.name) or REPLICATED.search(spec.name):
        yield spec.name, 0, spec.nbytes
        return
    part = spec.nbytes // row_parts
    yield spec.name, row_part * part, part
