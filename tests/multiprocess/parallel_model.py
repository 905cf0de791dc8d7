"""Serves a tensor-parallel model of transformers: ``torchrun -m tests.multiprocess.parallel_model FOLDER``.

FOLDER has checkpoints ``v1`` and ``v2``. While it has a file ``batches``, continuous batching runs, and each rank has
written its address to ``rank-N.batches``. Then each writes it to ``rank-N``, and answers in step with others until
there is a file ``stop``. Then it writes to ``rank-N.json`` which versions it has answered by, whether its memory is
that of a model which was started with the version that is served, whether it has parts of packed weights, and what
attach has refused.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers

from ckpt_transport import ConfigError
from ckpt_transport_transformers import attach

PROMPT = list(range(1, 20))
GREEDY = transformers.GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=127, pad_token_id=0)


def model_of(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, tp_plan="auto").eval()


def answer(model: Any) -> list[int]:
    tokens: list[int] = model.generate(torch.tensor([PROMPT]), generation_config=GREEDY)[0, len(PROMPT) :].tolist()
    return tokens


def is_over(folder: Path) -> bool:
    """What rank 0 sees, which is the same on all."""
    seen = torch.tensor([int((folder / "stop").exists())])
    dist.broadcast(seen, 0)
    return bool(seen.item())


def tell(place: Path, address: str) -> None:
    written = place.with_suffix(".new")
    written.write_text(address)
    written.rename(place)


def run_batches(model: Any, folder: Path, told: Path, address: str) -> None:
    """Run continuous batching until nobody wants it; its loops alone use the ranks' process group meanwhile."""
    settings = transformers.ContinuousBatchingConfig(num_blocks=64, page_size=16, max_batch_tokens=64)
    manager = model.init_continuous_batching(generation_config=GREEDY, continuous_batching_config=settings)
    manager.start()
    tell(told, address)
    while (folder / "batches").exists():
        time.sleep(0.05)
    manager.stop(block=True)


def memory_of(model: Any) -> dict[str, torch.Tensor]:
    state = model.state_dict(keep_vars=True)
    return {name: each.to_local() if hasattr(each, "to_local") else each for name, each in state.items()}


def splits_of(parameter: Any) -> list[bool]:
    """Whether a rank has several runs of a dimension, for each dimension of the mesh."""
    return [getattr(placement, "split_factor", 1) > 1 for placement in getattr(parameter, "placements", ())]


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    fresh = {version: model_of(folder / version) for version in ("v1", "v2")}
    spoken = {version: answer(model) for version, model in fresh.items()}
    served, refused = model_of(folder / "v1"), ""
    try:
        attach(served)
    except ConfigError as error:
        refused = str(error)
    with attach(served, engine="parallel", version="v1", label=f"rank {rank}") as attached:
        answers = [answer(served)]
        if (folder / "batches").exists():
            dist.barrier()
            run_batches(served, folder, folder / f"rank-{rank}.batches", attached.address)
        tell(folder / f"rank-{rank}", attached.address)
        while not is_over(folder):
            answers.append(answer(served))
        version = attached.version
        answers.append(answer(served))
    wanted, found = memory_of(fresh[version]), memory_of(served)
    told = {
        "version": version,
        "by": [[name for name, said in spoken.items() if said == each] for each in (answers[0], answers[-1])],
        "equal": all(torch.equal(found[name], wanted[name]) for name in wanted),
        "packed": any(split for each in served.parameters() for split in splits_of(each)),
        "refused": refused,
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
