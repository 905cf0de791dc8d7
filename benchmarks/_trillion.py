"""An imagined model of a trillion parameters, and fleets that serve it: 61 layers, 60 of which have 384 experts in FP8.

Nothing is moved. Eight sources, each on a host of its own, hold equal parts; sinks are on hosts of eight.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_transport import dtypes
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
    EVERYTHING,
    Extent,
    Manifest,
    PlacedTensor,
    RankInfo,
    Role,
    Share,
    TensorSpec,
    Topology,
    digest_of,
)

LAYERS, EXPERTS, HIDDEN, INNER = 61, 384, 7168, 2048
SOURCES, SINKS_PER_HOST = 8, 8
TENSOR_PARALLEL, EXPERT_PARALLEL = 8, 32
BUDGET = 1 << 30
TRANSPORTS = ("gloo", "mooncake", "shm")
ROWS = ("q_b_proj.weight", "kv_b_proj.weight", "lm_head.weight", "embed_tokens.weight")
"""How the names of tensors end that tensor-parallel ranks share out by rows."""


def _matrix(name: str, rows: int, columns: int) -> Iterator[TensorSpec]:
    """A matrix in FP8, and the scales of its blocks."""
    yield TensorSpec(f"{name}.weight", "F8_E4M3", (rows, columns))
    yield TensorSpec(f"{name}.weight_scale_inv", "F32", (-(-rows // 128), -(-columns // 128)))


def _perceptron(name: str, inner: int) -> Iterator[TensorSpec]:
    yield from _matrix(f"{name}.gate_proj", inner, HIDDEN)
    yield from _matrix(f"{name}.up_proj", inner, HIDDEN)
    yield from _matrix(f"{name}.down_proj", HIDDEN, inner)


def specs() -> Iterator[TensorSpec]:
    """All tensors, in the order of layers."""
    yield TensorSpec("model.embed_tokens.weight", "BF16", (163_840, HIDDEN))
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        yield from _matrix(f"{name}.self_attn.q_a_proj", 1536, HIDDEN)
        yield from _matrix(f"{name}.self_attn.q_b_proj", 64 * 192, 1536)
        yield from _matrix(f"{name}.self_attn.kv_a_proj_with_mqa", 576, HIDDEN)
        yield from _matrix(f"{name}.self_attn.kv_b_proj", 64 * 256, 512)
        yield from _matrix(f"{name}.self_attn.o_proj", HIDDEN, 64 * 128)
        for norm, size in (("q_a", 1536), ("kv_a", 512)):
            yield TensorSpec(f"{name}.self_attn.{norm}_layernorm.weight", "BF16", (size,))
        for norm in ("input", "post_attention"):
            yield TensorSpec(f"{name}.{norm}_layernorm.weight", "BF16", (HIDDEN,))
        if layer == 0:
            yield from _perceptron(f"{name}.mlp", 18_432)
            continue
        yield TensorSpec(f"{name}.mlp.gate.weight", "BF16", (EXPERTS, HIDDEN))
        yield TensorSpec(f"{name}.mlp.gate.e_score_correction_bias", "F32", (EXPERTS,))
        yield from _perceptron(f"{name}.mlp.shared_experts", INNER)
        for expert in range(EXPERTS):
            yield from _perceptron(f"{name}.mlp.experts.{expert}", INNER)
    yield TensorSpec("model.norm.weight", "BF16", (HIDDEN,))
    yield TensorSpec("lm_head.weight", "BF16", (163_840, HIDDEN))


def version() -> Manifest:
    """Every source holds as many layers' bytes as the next, one tensor behind the other, aligned as in a pool."""
    every = list(specs())
    total, done = sum(spec.nbytes for spec in every), 0
    ends = [0] * SOURCES
    tensors: list[PlacedTensor] = []
    for spec in every:
        owner = min(done * SOURCES // total, SOURCES - 1)
        done += spec.nbytes
        tensors.append(PlacedTensor(spec, owner, ends[owner], spec.nbytes))
        ends[owner] = -(-(ends[owner] + spec.nbytes) // 256) * 256
    extents = tuple(Extent(owner, nbytes, MemoryKind.SHARED) for owner, nbytes in enumerate(ends))
    return Manifest("step-2", extents, tuple(tensors))


def fleet(sinks: int) -> Topology:
    """Sinks that all need everything."""
    ranks = [(Role.SOURCE, f"trainer-{number}") for number in range(SOURCES)]
    ranks += [(Role.SINK, f"engine-{number // SINKS_PER_HOST}") for number in range(sinks)]
    return Topology(tuple(RankInfo(rank, role, host, BUDGET, TRANSPORTS) for rank, (role, host) in enumerate(ranks)))


def sharded(sinks: int) -> Topology:
    """Sinks of engines of 32 ranks: each has an equal part of the experts, and of some matrices an eighth."""
    every = list(specs())
    digest = digest_of(every)
    shares = tuple(Share(digest, tuple(_needed(every, rank))) for rank in range(EXPERT_PARALLEL))
    plain = fleet(sinks)
    return Topology(
        tuple(
            RankInfo(
                each.rank,
                each.role,
                each.host,
                each.budget,
                each.transports,
                share=(each.rank - SOURCES) % EXPERT_PARALLEL if each.role is Role.SINK else EVERYTHING,
            )
            for each in plain.participants
        ),
        shares,
    )


def _needed(every: list[TensorSpec], rank: int) -> Iterator[tuple[str, int, int]]:
    place = rank % TENSOR_PARALLEL
    for spec in every:
        _, _, rest = spec.name.partition(".experts.")
        if rest and int(rest.partition(".")[0]) * EXPERT_PARALLEL // EXPERTS != rank:
            continue
        if not rest and spec.name.endswith(ROWS):
            part = dtypes.nbytes(spec.dtype, (spec.shape[0] // TENSOR_PARALLEL, *spec.shape[1:]))
            yield spec.name, place * part, part
        else:
            yield spec.name, 0, spec.nbytes
