"""Knows the data-parallel replicas of an engine: whole copies of its model, behind one endpoint or several.

Replicas of a dense model are engines of their own. Those of a mixture of experts share its experts, so that each makes
a forward pass, of nothing if need be, when another does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def replicas_of(parallel_config: Mapping[str, Any]) -> int:
    """How many replicas are behind one endpoint.

    Args:
        parallel_config: of its server.
    """
    if parallel_config.get("data_parallel_external_lb"):
        return 1
    if parallel_config.get("data_parallel_hybrid_lb"):
        return int(parallel_config["data_parallel_size_local"])
    return int(parallel_config.get("data_parallel_size", 1))


def in_lockstep(parallel_config: Mapping[str, Any]) -> bool:
    """Whether replicas, behind this endpoint or others, make forward passes together."""
    return bool(int(parallel_config.get("data_parallel_size", 1)) > 1 and parallel_config.get("is_moe_model"))


def replica(vllm_config: Any) -> int:
    """Which replica a worker belongs to, counted from 0."""
    parallel_config = vllm_config.parallel_config
    return int(getattr(parallel_config, "data_parallel_index", parallel_config.data_parallel_rank))


def engine_group(engine: str, vllm_config: Any) -> str:
    """A name that the workers of one replica have, and no other's: they make the same forward passes in one order."""
    number = replica(vllm_config)
    return f"{engine}#{number}" if number else engine


def worker_label(rank: int, vllm_config: Any) -> str:
    """What people call a worker."""
    number = replica(vllm_config)
    return f"vLLM rank {rank}{f' of replica {number}' if number else ''}"
