"""Measures an update of a running vLLM over shared memory against vLLM's own reload of the same files.

The reload reads files that are in the page cache, and both end in vLLM's layerwise reload. Reloads to one version and
updates to the other take turns, so that each brings new bytes, which completions confirm. The first of both is not
counted. Needs vLLM: ``make bench-vllm``, or ``python -m benchmarks.vllm_reload`` where it is installed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

from benchmarks._report import Row, report
from ckpt_transport import Config, ParameterServer
from ckpt_transport.checkpoint.directory import from_directory
from ckpt_transport_vllm import VllmFleet
from ckpt_transport_vllm.server import VllmServer
from tests.support.vllm_server import Serve

FAMILY = "qwen3"
READ_BYTES = 16 << 20


def measure(hidden: int = 2048, layers: int = 14, rounds: int = 5) -> list[Row]:
    """One row for the whole update, one for how long it holds requests. The defaults make about 1 GiB of weights."""
    with tempfile.TemporaryDirectory(prefix="ckpt-transport-bench-") as folder:
        reloaded, updated = _write(Path(folder), hidden, layers)
        nbytes = sum(entry.spec.nbytes for file in from_directory(updated) for entry in file.tensors)
        source, target = torch.ones(nbytes, dtype=torch.uint8), torch.zeros(nbytes, dtype=torch.uint8)
        copies, reloads, updates, held = [], [], [], []
        config = Config(transport="shm")
        with (
            Serve(reloaded, Path(folder) / "vllm.log") as engine,
            ParameterServer(config) as server,
        ):
            server.register("new", directory=updated)
            _read(reloaded)
            engine.wait()
            old = engine.complete()
            with VllmFleet([engine.url], config) as fleet, VllmServer(engine.url) as control:

                def reload() -> None:
                    control.call_workers("reload_weights", weights_path=str(reloaded))

                for _ in range(rounds + 1):
                    copies.append(_timed(lambda: target.copy_(source)))
                    done = fleet.update(server, "new")
                    assert done is not None, "the only source leads"
                    updates.append(done.steps["update"])
                    held.append(done.held[engine.url])
                    new = engine.complete()
                    assert new != old, "the update changed nothing"
                    reloads.append(_timed(reload))
                    control.reset_caches()
                    assert engine.complete() == old, "the reload did not bring the old version back"
    reload_seconds, update_seconds, held_seconds = (median(taken[1:]) for taken in (reloads, updates, held))
    what = f"{nbytes / (1 << 30):.2f} GiB"
    detail = (
        f"update {update_seconds * 1e3:.0f} ms = {nbytes / update_seconds / 1e9:.2f} GB/s "
        f"(held {held_seconds * 1e3:.0f} ms, first {updates[0] * 1e3:.0f} ms), "
        f"reload {reload_seconds * 1e3:.0f} ms = {nbytes / reload_seconds / 1e9:.2f} GB/s, "
        f"copy {median(copies[1:]) * 1e3:.0f} ms = {nbytes / median(copies[1:]) / 1e9:.1f} GB/s"
    )
    against = "vLLM's reload_weights from the page cache"
    return [
        Row(f"vLLM update over shm, {what}", update_seconds / reload_seconds, against, "<=0.7", detail),
        Row(f"requests held by it, {what}", held_seconds / reload_seconds, against, "", f"{len(held) - 1} rounds"),
    ]


def _write(folder: Path, hidden: int, layers: int) -> tuple[Path, Path]:
    """Two checkpoints, written by a process that gives its memory back."""
    command = [sys.executable, "-m", "tests.support.tiny_models", str(folder), f"--family={FAMILY}"]
    command += ["--seed=1", "--seed=2", f"--hidden={hidden}", f"--layers={layers}"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return folder / f"{FAMILY}-1", folder / f"{FAMILY}-2"


def _read(directory: Path) -> None:
    """Bring the files into the page cache."""
    for path in directory.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(READ_BYTES):
                pass


def _timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main(
    hidden: Annotated[int, typer.Option(help="Width of the model, a multiple of 128.")] = 2048,
    layers: Annotated[int, typer.Option(help="Its depth.")] = 14,
    rounds: Annotated[int, typer.Option(help="Repetitions.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Update a running vLLM, and let it reload the same amount itself, in turns."""
    report(measure(hidden, layers, rounds), json)


if __name__ == "__main__":
    typer.run(main)
