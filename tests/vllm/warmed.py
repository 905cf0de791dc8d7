"""A vLLM in this process finds out while it serves what its first update would find out while it stands still.

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

from ckpt_transport.planning import TensorSpec
from ckpt_transport_vllm import load_format
from ckpt_transport_vllm.recorded_model import RecordedModel
from tests.support import tiny_models
from tests.support.vllm_server import ENVIRONMENT
from tests.vllm import architectures as architectures
from tests.vllm.forked import output_of
from tests.vllm.in_process import Answers, reference, reference_of, warm_up
from tests.vllm.recorded import BUCKET_BYTES, Updated, _compare, specs_of
from tests.vllm.source import Source

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
    assert "x left to the first update" not in rehearsed, rehearsed
    warmed = updated.engine._loading.recorded
    assert warmed is not None
    still = record(updated.engine._find_target(), specs)
    assert (warmed.layout, warmed.modes.keys()) == (still.layout, still.modes.keys())
    _compare(updated.served.answers(), first)
    loads = loader_calls(updated)
    how = first_update(updated, folder / f"{family}-2", specs, (first, second))
    assert not recordings
    assert not loads
    assert how == ("staged" if "can be staged" in rehearsed else "in place"), rehearsed
    told = updated.update(folder / f"{family}-1", specs, BUCKET_BYTES)
    assert told.startswith("replayed in"), told
    _compare(updated.served.answers(), first)
    found = found_out(warmed)
    updated.engine._loading.abandon()
    assert "found to be the same" in updated.update(folder / f"{family}-2", specs, BUCKET_BYTES)
    compared = updated.engine._loading.recorded
    assert compared is not None
    assert found == found_out(compared)
    _compare(updated.served.answers(), second)
    warm_by_call(updated, folder, family, how.replace(" ", "_"))
    _compare(updated.served.answers(), first)
    print(f"{family}: recorded while it served, first update {how}, {told}", flush=True)


def first_update(updated: Updated, directory: Path, specs: list[TensorSpec], answers: tuple[Answers, Answers]) -> str:
    """Bring the first version beside what is served, where that can be done, else in place; says which."""
    processed = list[Any]()
    process = load_format.process

    def noted(*arguments: Any) -> None:
        processed.append(arguments)
        process(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_format, "process", noted)
        how = "in place" if updated.stage(directory, specs, BUCKET_BYTES) else "staged"
        if how == "in place":
            assert is_replayed(told := updated.update(directory, specs, BUCKET_BYTES)), told
        else:
            assert processed
            processed.clear()
            _compare(updated.served.answers(), answers[0])
            updated.exchange()
            assert not processed
    _compare(updated.served.answers(), answers[1])
    return how


def found_out(recorded: RecordedModel) -> Any:
    """How each module is loaded, and why."""
    assert recorded.verified
    return recorded.modes, recorded.reasons, recorded.unexchangeable


def loader_calls(updated: Updated) -> list[Any]:
    """Gets what the loader of the model is given from now on."""
    kind: Any = type(updated.engine._find_target().model)
    load, calls = kind.load_weights, list[Any]()

    def noted(self: Any, weights: Any) -> Any:
        calls.append(weights)
        return load(self, weights)

    pytest.MonkeyPatch().setattr(kind, "load_weights", noted)
    return calls


def warm_by_call(updated: Updated, folder: Path, family: str, commit: str) -> None:
    """As an operator has it done, through the worker extension; the update is refused unless it commits so."""
    call = updated.served.llm.collective_rpc
    (answer,) = call("ckpt_transport_warm_up")
    assert "call ckpt_transport_attach before" in answer["error"]
    sink = updated.served.sink()
    warm_up(updated.served.llm, [sink])
    with Source({"transport": "shm", "commit": commit}, {"v1": folder / f"{family}-1"}, sink) as source:
        (told,) = source.update("v1")
    assert is_replayed(told), told
    call("ckpt_transport_detach")


def is_replayed(told: str) -> bool:
    """Whether an engine says that only the replay has loaded a version."""
    return "replayed in" in told and "loaded by the loader" not in told


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
