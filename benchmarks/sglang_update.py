"""Measures an update of a running SGLang against SGLang's own ways to the same weights, all in turns in one run.

* ``update_weights_from_tensor``: the trainer's tensors are handed over in shared memory, or on the GPU where SGLang is,
  in one call, between ``begin_weight_update`` and ``end_weight_update``.
* ``update_weights_from_disk``: files that are in the page cache.

Ours is timed twice: from the trainer's tensors, lent where they lie, as ``publish`` does; and from versions that are
registered already, as files are written already. Both once more with ``integrity = "never"``, because SGLang's ways
compare no digests of what arrives. In its turn each way brings the first of two versions, the second, and the first
again, which completions confirm, and the last counts: a job has one way, and keeps from one update to the next what
that needs, as sinks keep mappings of pools. All keep their connections. The first turns are not counted. Before SGLang
starts, torch copies as many bytes with all cores: no way that copies each byte once takes less. Needs
SGLang: ``make bench-sglang``. Where there is a GPU, SGLang and the trainer's tensors are on it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import torch
import typer
from safetensors.torch import load_file

from benchmarks._report import Row, report
from ckpt_transport import Config, FleetReport, ParameterServer
from ckpt_transport.service.endpoints import client_of
from ckpt_transport_sglang import SglangFleet
from tests.support.sglang_server import SglangServe

FAMILY = "qwen3"
SEEDS = (1, 2)
CALL_SECONDS = 300.0
Way = Callable[[int], FleetReport | None]
"""Has the engine serve the version of a seed; what the fleet says of that, where it was ours."""
PAIRS = (("lent", "from a trainer's tensors", "from_tensor"), ("registered", "from a registered version", "from_disk"))
"""What of ours is compared with what of SGLang's: both begin alike, and end when the engine serves the version."""
INTEGRITY = ("always", "never")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRANSPORT = "auto" if DEVICE == "cuda" else "shm"


def measure(hidden: int = 1024, layers: int = 16, rounds: int = 5) -> list[Row]:
    """One row for each pair of ways, with digests and without. The defaults make about 0.3 GiB of weights."""
    with tempfile.TemporaryDirectory(prefix="ckpt-transport-bench-") as folder, ExitStack() as stack:
        _write(Path(folder), hidden, layers)
        directories = {seed: Path(folder) / f"{FAMILY}-{seed}" for seed in SEEDS}
        tensors = {seed: load_file(directories[seed] / "model.safetensors", DEVICE) for seed in SEEDS}
        nbytes = sum(tensor.nbytes for tensor in tensors[SEEDS[0]].values())
        copied = copy_seconds(nbytes, rounds)
        engine = stack.enter_context(SglangServe(directories[SEEDS[0]], Path(folder) / "sglang.log")).wait()
        client = stack.enter_context(client_of(engine.url, CALL_SECONDS))
        ways: dict[str, Way] = {
            "from_tensor": lambda seed: from_tensor(client, tensors[seed]),
            "from_disk": lambda seed: from_disk(client, directories[seed]),
        }
        for integrity in INTEGRITY:
            config = Config.load(transport=TRANSPORT, integrity=integrity)
            trainer = SglangTrainer(
                stack.enter_context(ParameterServer(config)),
                stack.enter_context(SglangFleet([engine.url], config)),
            )
            for seed in SEEDS:
                trainer.server.register(kept(seed), directory=directories[seed])
            ways[f"lent, {integrity}"] = partial(trainer.lend, tensors)
            ways[f"registered, {integrity}"] = trainer.update
        found = _in_turns(engine, ways, rounds)
    seconds = {name: median(each.seconds for each in rounds_of) for name, rounds_of in found.items()}
    seconds["a plain copy"] = copied
    what, detail = f"{nbytes / (1 << 30):.2f} GiB on {DEVICE}", _in_words(seconds)
    return [
        Row(
            f"SGLang, {what} {begin}, integrity = {integrity}",
            seconds[f"{own}, {integrity}"] / seconds[theirs],
            f"SGLang's {theirs}",
            "<=0.7",
            f"{detail}; of this one {_in_words(_steps(found[f'{own}, {integrity}']))}",
        )
        for own, begin, theirs in PAIRS
        for integrity in INTEGRITY
    ]


@dataclass(frozen=True)
class SglangTrainer:
    """Brings versions to the engine, in our ways."""

    server: ParameterServer
    fleet: SglangFleet

    def lend(self, tensors: Mapping[int, Mapping[str, torch.Tensor]], seed: int) -> FleetReport | None:
        """From memory that stays the trainer's."""
        version = f"lent-{seed}"
        self.server.lend(version, tensors[seed])
        try:
            return self.fleet.update(self.server, version)
        finally:
            self.server.unregister(version)

    def update(self, seed: int) -> FleetReport | None:
        """From a version that is registered."""
        return self.fleet.update(self.server, kept(seed))


def kept(seed: int) -> str:
    """The name of a registered version."""
    return f"kept-{seed}"


@dataclass(frozen=True)
class Round:
    """Describes one update.

    Attributes:
        seconds: from the call until the engine serves the version.
        report: of ours.
    """

    seconds: float
    report: FleetReport | None


def _steps(rounds: Sequence[Round]) -> dict[str, float]:
    """Seconds of each step of a fleet's update, of each phase of its step ``update``, and of requests that are held."""
    reports = [each.report for each in rounds if each.report is not None]
    found = {name: median(report.steps[name] for report in reports) for name in reports[0].steps}
    for phase in reports[0].update.phases:
        found[f"update.{phase}"] = median(report.update.phases[phase] for report in reports)
    found["held"] = median(sum(report.held.values()) for report in reports)
    return found


def _in_words(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {each * 1e3:.0f} ms" for name, each in seconds.items())


def from_tensor(client: httpx.Client, tensors: Mapping[str, torch.Tensor]) -> None:
    """Update by handing tensors over."""
    from sglang.srt.utils import MultiprocessingSerializer

    share: Callable[[str], None] = torch.multiprocessing.set_sharing_strategy
    share("file_system")  # descriptors are handed to one's own children only
    handed = MultiprocessingSerializer.serialize(list(tensors.items()), output_str=True)
    _post(client, "/begin_weight_update", {})
    _post(client, "/update_weights_from_tensor", {"serialized_named_tensors": [handed]})
    _post(client, "/end_weight_update", {})


def from_disk(client: httpx.Client, directory: Path) -> None:
    """Update from files."""
    _post(client, "/update_weights_from_disk", {"model_path": str(directory)})


def copy_seconds(nbytes: int, rounds: int) -> float:
    """What it takes to copy so many bytes to memory that is there, on the device where SGLang is."""
    here, there = (torch.ones(nbytes, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    taken: list[float] = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        there.copy_(here)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return median(taken[1:])


def _post(client: httpx.Client, path: str, body: Mapping[str, Any]) -> None:
    client.post(path, json=body).raise_for_status()


def _in_turns(engine: SglangServe, ways: Mapping[str, Way], rounds: int) -> dict[str, list[Round]]:
    """What is counted of each way. Versions are told by what the engine says."""
    says: dict[int, list[int]] = {SEEDS[0]: engine.complete()}
    taken: dict[str, list[Round]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            for seed in (SEEDS[0], *reversed(SEEDS)):
                began = time.perf_counter()
                report = way(seed)
                ended = Round(time.perf_counter() - began, report)
                said = engine.complete()
                assert said == says.setdefault(seed, said), f"{name} did not bring version {seed}"
            if turn:
                taken[name].append(ended)
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
    """Update a running SGLang in each of six ways, in turns."""
    from tests.sglang import standins

    assert standins.declared
    report(measure(hidden, layers, rounds), json)


if __name__ == "__main__":
    typer.run(main)
