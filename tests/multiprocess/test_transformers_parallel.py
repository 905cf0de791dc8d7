"""Two ranks of a tensor-parallel model of transformers are updated while they answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import UpdateAbortedError
from tests.patience import PATIENT

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[frameworks]'")
torch = pytest.importorskip("torch")

RANKS = 2
pytestmark = pytest.mark.timeout(300)


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
SHAPE = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, **HEADS}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}


def _tied(seed: int) -> Any:
    """A model whose head is tied to its embeddings."""
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True))


def _packed(seed: int) -> Any:
    """A mixture whose gates and values are in one weight, of which each rank has rows of both."""
    torch.manual_seed(seed)
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SHAPE, **EXPERTS))


@contextmanager
def _ranks(folder: Path) -> Iterator[Callable[[str], list[str]]]:
    """What ranks have written to files of some ending; when the block ends they stop, and tell what became of them."""
    settings = {f"CKPT_TRANSPORT_{name.upper()}": str(value) for name, value in PATIENT.items()}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    with (folder / "log").open("w") as log:
        ranks = subprocess.Popen(
            [*torchrun, "-m", "tests.multiprocess.parallel_model", str(folder)],
            stdout=log,
            stderr=log,
            env={**os.environ, **settings, "OMP_NUM_THREADS": "1"},
        )

    def written(ending: str) -> list[str]:
        places = [folder / f"rank-{rank}{ending}" for rank in range(RANKS)]
        while not all(place.exists() for place in places):
            assert ranks.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        return [place.read_text() for place in places]

    try:
        yield written
        (folder / "stop").touch()
        assert ranks.wait(120) == 0, (folder / "log").read_text()
    finally:
        ranks.terminate()
        ranks.wait(60)


def _told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("commit", ["in_place", "auto"])
@pytest.mark.parametrize("make", [_tied, _packed])
def test_given_ranks_that_answer_then_each_gets_its_part_of_whole_tensors(
    tmp_path: Path, make: Callable[[int], Any], commit: str
) -> None:
    models = {"v1": make(1), "v2": make(2)}
    for version, model in models.items():
        model.save_pretrained(tmp_path / version)
    config = Config.load(**PATIENT, commit=commit)
    with _ranks(tmp_path) as written, ParameterServer(config, rank=0, world_size=1) as server:
        addresses = written("")
        with pytest.raises(UpdateAbortedError, match="lacks tensor"):
            server.publish("a part", {"lm_head.weight": torch.zeros(128, 32)}, addresses)
        for version in ("v2", "v1", "v2"):
            report = server.publish(version, models[version].state_dict(), addresses)
        assert report is not None
        assert report.staged == (commit == "auto"), (report.in_place, report.apply_summary)
    for rank in _told(tmp_path):
        assert rank["version"] == "v2"
        assert rank["by"] == [["v1"], ["v2"]]
        assert rank["equal"]
        assert rank["packed"] == (make is _packed)
        assert "give all of them the same name" in rank["refused"]


def test_given_ranks_with_continuous_batching_then_they_are_updated_when_its_loops_have_ended(tmp_path: Path) -> None:
    for version, seed in (("v1", 1), ("v2", 2)):
        _tied(seed).save_pretrained(tmp_path / version)
    (tmp_path / "batches").touch()
    with _ranks(tmp_path) as written, ParameterServer(Config.load(**PATIENT), rank=0, world_size=1) as server:
        server.register("v2", tensors=_tied(2).state_dict())
        with pytest.raises(UpdateAbortedError, match="continuous batching runs on ranks of tensor parallelism"):
            server.update("v2", written(".batches"))
        (tmp_path / "batches").unlink()
        server.update("v2", written(""))
    for rank in _told(tmp_path):
        assert (rank["version"], rank["by"], rank["equal"]) == ("v2", [["v1"], ["v2"]], True)
