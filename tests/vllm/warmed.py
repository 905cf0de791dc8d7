"""A vLLM in this process records its loader while it serves, and finds what it finds while it stands still.

Usage: ``python -m tests.vllm.warmed [--family NAME ...]``.
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from ckpt_transport import ask_version
from ckpt_transport_vllm.recorded_model import RecordedModel
from tests.support import tiny_models
from tests.support.vllm_server import ENVIRONMENT
from tests.vllm import architectures as architectures
from tests.vllm.forked import output_of
from tests.vllm.recorded import BUCKET_BYTES, Updated, _compare, specs_of

MODULE = "tests.vllm.warmed"


def check(folder: Path, family: str) -> None:
    """Warm up while requests are answered, and update without a further recording."""
    updated = Updated(folder / f"{family}-1")
    first, specs = updated.served.answers(), specs_of(folder / f"{family}-1")
    recordings = []
    record = RecordedModel.of

    def counted(*arguments: Any) -> RecordedModel:
        recordings.append(arguments)
        return record(*arguments)

    pytest.MonkeyPatch().setattr(RecordedModel, "of", counted)
    with ThreadPoolExecutor(1) as thread:
        warming_up = thread.submit(lambda: list(updated.engine.warm_up(specs)))
        _compare(updated.served.answers(), first)
        steps = warming_up.result(120)
    _compare(updated.served.answers(), first)
    assert steps[-1] == "recorded the loader", steps
    warmed = updated.engine._loading.recorded
    assert warmed is not None
    still = record(updated.engine._find_target(), specs)
    assert (warmed.layout, warmed.modes) == (still.layout, still.modes)
    _compare(updated.served.answers(), first)
    told = updated.update(folder / f"{family}-2", specs, BUCKET_BYTES)
    assert not recordings
    assert "found to be the same" in told, told
    told = updated.update(folder / f"{family}-1", specs, BUCKET_BYTES)
    assert told.startswith("replayed in"), told
    _compare(updated.served.answers(), first)
    warm_by_call(updated)
    print(f"{family}: recorded while it served, {told}", flush=True)


def warm_by_call(updated: Updated) -> None:
    """As an operator has it done, through the worker extension."""
    call = updated.served.llm.collective_rpc
    (answer,) = call("ckpt_transport_warm_up")
    assert "call ckpt_transport_attach before" in answer["error"]
    sink = updated.served.sink()
    (answer,) = call("ckpt_transport_warm_up")
    assert answer == {"error": ""}
    deadline = time.monotonic() + 120
    while not (said := ask_version(sink).warm_up).startswith(("warmed up", "could not")):
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
    assert said.startswith("warmed up: recorded the loader"), said
    call("ckpt_transport_detach")


def main(
    family: Annotated[list[str] | None, typer.Option(help="Of models; by default all.")] = None,
    only: Annotated[Path | None, typer.Option(help="Check one family, with checkpoints from this folder.")] = None,
) -> None:
    """Check what engines do before their first update."""
    os.environ.update(ENVIRONMENT)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    families = family or sorted(tiny_models.FAMILIES)
    if only is not None:
        check(only, families[0])
        return
    for name in families:
        with tempfile.TemporaryDirectory() as folder:
            for seed in (1, 2):
                tiny_models.write(Path(folder) / f"{name}-{seed}", seed, name)
            print(output_of(MODULE, "--only", folder, "--family", name))


if __name__ == "__main__":
    typer.run(main)
