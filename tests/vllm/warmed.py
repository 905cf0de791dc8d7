"""A vLLM in this process records its loader while it serves, and finds what it finds while it stands still.

Usage: ``python -m tests.vllm.warmed [--family NAME ...]``.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from ckpt_transport_vllm.recorded_model import RecordedModel
from tests.support import tiny_models
from tests.support.vllm_server import ENVIRONMENT
from tests.vllm import architectures as architectures
from tests.vllm.forked import output_of
from tests.vllm.in_process import reference, reference_of, warm_up
from tests.vllm.recorded import BUCKET_BYTES, Updated, _compare, specs_of

MODULE = "tests.vllm.warmed"


def check(folder: Path, family: str) -> None:
    """Warm up while requests are answered, and update without a further recording."""
    updated = Updated(folder / f"{family}-1")
    first, specs = updated.served.answers(), specs_of(folder / f"{family}-1")
    second, recordings = reference_of(MODULE, folder / f"{family}-2"), []
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
    recorded_ahead, *silent, rehearsed = steps
    assert recorded_ahead == "recorded the loader", steps
    assert set(silent) == {""}, steps
    assert rehearsed.startswith("rehearsed its replay: "), rehearsed
    assert rehearsed.endswith(" as they are loaded"), rehearsed
    warmed = updated.engine._loading.recorded
    assert warmed is not None
    still = record(updated.engine._find_target(), specs)
    assert (warmed.layout, warmed.modes) == (still.layout, still.modes)
    _compare(updated.served.answers(), first)
    loads = loader_calls(updated)
    told = updated.update(folder / f"{family}-2", specs, BUCKET_BYTES)
    assert not recordings
    assert not loads
    assert "as it was rehearsed" in told, told
    _compare(updated.served.answers(), second)
    told = updated.update(folder / f"{family}-1", specs, BUCKET_BYTES)
    assert told.startswith("replayed in"), told
    _compare(updated.served.answers(), first)
    warm_by_call(updated)
    print(f"{family}: recorded while it served, {told}", flush=True)


def loader_calls(updated: Updated) -> list[Any]:
    """Gets what the loader of the model is given from now on."""
    kind: Any = type(updated.engine._find_target().model)
    load, calls = kind.load_weights, list[Any]()

    def noted(self: Any, weights: Any) -> Any:
        calls.append(weights)
        return load(self, weights)

    pytest.MonkeyPatch().setattr(kind, "load_weights", noted)
    return calls


def warm_by_call(updated: Updated) -> None:
    """As an operator has it done, through the worker extension."""
    call = updated.served.llm.collective_rpc
    (answer,) = call("ckpt_transport_warm_up")
    assert "call ckpt_transport_attach before" in answer["error"]
    sink = updated.served.sink()
    warm_up(updated.served.llm, [sink])
    call("ckpt_transport_detach")


def main(
    family: Annotated[list[str] | None, typer.Option(help="Of models; by default all.")] = None,
    from_directory: Annotated[Path | None, typer.Option("--reference", help="Only say what this one answers.")] = None,
    only: Annotated[Path | None, typer.Option(help="Check one family, with checkpoints from this folder.")] = None,
) -> None:
    """Check what engines do before their first update."""
    os.environ.update(ENVIRONMENT)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if from_directory is not None:
        reference(from_directory)
        return
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
