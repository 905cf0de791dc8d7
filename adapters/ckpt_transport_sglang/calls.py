"""Answers calls to a SGLang scheduler, all ranks of one engine together."""

from __future__ import annotations

import json
from typing import Any

import torch.distributed

from ckpt_transport_sglang.updatable import Updatable

CALLS = ("describe", "attach", "warm_up", "drop_caches", "renew")


def answer(manager: Any, call: str) -> Any:
    """Have every rank carry out a call, and say what came of it on each.

    It runs on the scheduler's thread, between two batches. Nothing is raised on one rank only: the others would wait.

    Args:
        manager: SGLang's, which has the scheduler and the group of ranks.
        call: in JSON, what is called and the names and values that it is given.
    """
    from sglang.srt.managers.io_struct import CheckWeightsReqOutput

    answers = [_carried_out(manager.scheduler, call)]
    ranks = torch.distributed.get_world_size(manager.tp_cpu_group)
    if ranks > 1:
        mine, answers = answers[0], answers * ranks
        torch.distributed.all_gather_object(answers, mine, group=manager.tp_cpu_group)
    return CheckWeightsReqOutput(success=True, message=json.dumps(answers))


def _carried_out(scheduler: Any, call: str) -> dict[str, str]:
    try:
        given = json.loads(call)
        name = given.pop("call")
        if name not in CALLS:
            return {"error": f"this ckpt-transport knows no call '{name}': install the same version on both sides"}
        found: dict[str, str] = getattr(Updatable.of(scheduler), name)(**given)
        return {"error": "", **found}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
