"""Measures an update of a running SGLang against SGLang's own ways to the same weights, all in turns in one run.

* ``update_weights_from_tensor``: the trainer's tensors are handed over in shared memory, in one call, between
  ``begin_weight_update`` and ``end_weight_update``.
* ``update_weights_from_disk``: files that are in the page cache.

Ours is timed twice: from the trainer's tensors to an engine that serves them, which copies them into shared memory in
each round, and from versions that are registered already. Every round brings the other one of two versions, which
completions confirm; the first rounds are not counted. Needs SGLang: ``make bench-sglang``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file

from benchmarks._report import Row, report
from ckpt_transport import Config, ParameterServer
from ckpt_transport_sglang import SglangFleet
from tests.support.sglang_server import SglangServe

FAMILY = "qwen3"
SEEDS = (1, 2)
CALL_SECONDS = 300.0
Way = Callable[[int], object]
"""Has the engine serve the version of a seed."""


def measure(hidden: int = 1024, layers: int = 16, rounds: int = 5) -> list[Row]:
    """One row for each of SGLang's ways. The defaults make about 0.3 GiB of weights."""
    with tempfile.TemporaryDirectory(prefix="ckpt-transport-bench-") as folder:
        _write(Path(folder), hidden, layers)
        directories = {seed: Path(folder) / f"{FAMILY}-{seed}" for seed in SEEDS}
        tensors = {seed: load_file(directories[seed] / "model.safetensors") for seed in SEEDS}
        nbytes = sum(tensor.nbytes for tensor in tensors[SEEDS[0]].values())
        config = Config.load(transport="shm")
        with (
            SglangServe(directories[SEEDS[0]], Path(folder) / "sglang.log") as engine,
            ParameterServer(config) as server,
            SglangFleet([engine.wait().url], config) as fleet,
        ):

            def ours(seed: int) -> None:
                server.register(f"v{seed}", tensors=tensors[seed])
                fleet.update(server, f"v{seed}")
                server.unregister(f"v{seed}")

            def registered(seed: int) -> None:
                done = fleet.update(server, f"kept-{seed}")
                assert done is not None, "the only source leads"
                steps.append(done.steps["update"])

            steps: list[float] = []
            for seed in SEEDS:
                server.register(f"kept-{seed}", directory=directories[seed])
            ways: dict[str, Way] = {
                "ours": ours,
                "registered": registered,
                "from_tensor": lambda seed: from_tensor(engine, tensors[seed]),
                "from_disk": lambda seed: from_disk(engine, directories[seed]),
            }
            taken = _in_turns(engine, ways, rounds)
    seconds = {name: median(each[1:]) for name, each in taken.items()}
    what = f"{nbytes / (1 << 30):.2f} GiB"
    detail = ", ".join(f"{name} {each * 1e3:.0f} ms" for name, each in seconds.items())
    detail += f"; of registered, the update itself {median(steps[1:]) * 1e3:.0f} ms"
    begins = {"ours": "from a trainer's tensors", "registered": "from a registered version"}
    return [
        Row(f"SGLang, {what} {begin}", seconds[own] / seconds[name], f"SGLang's {name}", "<=0.7", detail)
        for own, begin in begins.items()
        for name in ("from_tensor", "from_disk")
    ]


def from_tensor(engine: SglangServe, tensors: Mapping[str, torch.Tensor]) -> None:
    """Update by handing tensors over."""
    from sglang.srt.utils import MultiprocessingSerializer

    share: Callable[[str], None] = torch.multiprocessing.set_sharing_strategy
    share("file_system")  # descriptors are handed to one's own children only
    handed = MultiprocessingSerializer.serialize(list(tensors.items()), output_str=True)
    engine.ask("POST", "/begin_weight_update", {})
    engine.ask("POST", "/update_weights_from_tensor", {"serialized_named_tensors": [handed]}, CALL_SECONDS)
    engine.ask("POST", "/end_weight_update", {})


def from_disk(engine: SglangServe, directory: Path) -> None:
    """Update from files."""
    engine.ask("POST", "/update_weights_from_disk", {"model_path": str(directory)}, CALL_SECONDS)


def _in_turns(engine: SglangServe, ways: Mapping[str, Way], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way and round. Versions alternate, and are told by what the engine says."""
    says: dict[int, list[int]] = {SEEDS[0]: engine.complete()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    count = 0
    for _ in range(rounds + 1):
        for name, way in ways.items():
            count += 1
            seed = SEEDS[count % len(SEEDS)]
            began = time.perf_counter()
            way(seed)
            taken[name].append(time.perf_counter() - began)
            said = engine.complete()
            assert said == says.setdefault(seed, said), f"{name} did not bring version {seed}"
    assert says[SEEDS[0]] != says[SEEDS[1]], "both versions say the same"
    return taken


def _write(folder: Path, hidden: int, layers: int) -> None:
    """Two checkpoints, written by a process that gives its memory back."""
    command = [sys.executable, "-m", "tests.sglang.checkpoints", str(folder), f"--family={FAMILY}"]
    command += [*(f"--seed={seed}" for seed in SEEDS), f"--hidden={hidden}", f"--layers={layers}"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def main(
    hidden: Annotated[int, typer.Option(help="Width of the model, a multiple of 128.")] = 1024,
    layers: Annotated[int, typer.Option(help="Its depth.")] = 16,
    rounds: Annotated[int, typer.Option(help="Repetitions.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Update a running SGLang in each of three ways, in turns."""
    from tests.sglang import standins

    assert standins.declared
    report(measure(hidden, layers, rounds), json)


if __name__ == "__main__":
    typer.run(main)
