"""Recorded loaders of a vLLM in this process, compared bit by bit with one that starts from the files, and timed.

No transport is in between: buckets are cut from the files and given to the engine; on CPUs every other one is read to
where the engine says, once its loader is replayed. Works on CPUs and on a GPU:
``python -m tests.vllm.recorded [--family NAME ...] [--hidden N --layers N]``. Each family takes two processes: one
starts from the second version and says what it answers, one from the first and is updated there and back, twice. The
last two times only what the model says it needs is given to it.
VLLM_ARGUMENTS may hold further arguments of LLM as JSON.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors import safe_open

from ckpt_transport import LoadedBucket
from ckpt_transport.errors import UpdateError
from ckpt_transport.memory import DistantMemory, DistantRuns, this_process
from ckpt_transport.planning import ByteRangeSet, PlacedBytes, Share, TensorSpec
from ckpt_transport.planning.values.alignment import align_up
from ckpt_transport_vllm.engine import VllmEngine
from ckpt_transport_vllm.quiesce import WorkerGate
from ckpt_transport_vllm.recorded_model import ApplyMode
from ckpt_transport_vllm.updated_model import UpdatedModel
from tests.support import tiny_models
from tests.support.vllm_server import ENVIRONMENT
from tests.vllm import architectures as architectures
from tests.vllm.forked import output_of
from tests.vllm.in_process import Answers, Engine, reference, reference_of

MODULE = "tests.vllm.recorded"
BUCKET_BYTES = 64 << 10
"""Less than some tensors have."""
BUDGET = 1 << 30
"""Bytes to stage a version."""
Place = tuple[TensorSpec, int, int, int]


def buckets(directory: Path, nbytes: int, device: torch.device, share: Share | None) -> Iterator[LoadedBucket]:
    """A checkpoint in buckets, on ``device``, in memory that is used again for the next. Large tensors are split.

    Of what ``share`` does not name, nothing is in them.
    """
    needed = None if share is None else ByteRangeSet(share.ranges)
    slot = torch.empty(nbytes, dtype=torch.uint8, device=device)
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for number, whole in enumerate(_cut(file, nbytes)):
                slot.fill_(0xA5)
                places = [place for each in whole for place in _needed(each, needed)]
                for spec, offset, start, length in places:
                    raw = file.get_tensor(spec.name).reshape(-1).view(torch.uint8)
                    slot[start : start + length].copy_(raw[offset : offset + length])
                yield LoadedBucket(
                    (path.name, number, needed is None), slot, partial(list, [PlacedBytes(*place) for place in places])
                )


def _needed(place: Place, needed: ByteRangeSet | None) -> Iterator[Place]:
    """The parts of a place that are needed."""
    spec, offset, start, nbytes = place
    given = ByteRangeSet([(spec.name, offset, nbytes)])
    for _, low, length in given if needed is None else given.intersection(needed):
        yield spec, low, start + low - offset, length


def _cut(file: Any, nbytes: int) -> Iterator[list[Place]]:
    """Where tensors lie in each bucket."""
    places: list[Place] = []
    end = 0
    for spec in _specs(file):
        if places and end + spec.nbytes > nbytes:
            yield places
            places, end = [], 0
        for offset in range(0, spec.nbytes, nbytes):
            if places and places[-1][0] == spec:
                yield places
                places, end = [], 0
            length = min(spec.nbytes - offset, nbytes)
            places.append((spec, offset, end, length))
            end = align_up(end + length)
    yield places


def _specs(file: Any) -> list[TensorSpec]:
    slices = {name: file.get_slice(name) for name in sorted(file.keys())}
    return [TensorSpec(name, each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()]


def specs_of(directory: Path) -> list[TensorSpec]:
    found: list[TensorSpec] = []
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found += _specs(file)
    return found


class Updated:
    """A vLLM in this process whose weights are replaced."""

    def __init__(self, directory: Path) -> None:
        self.served = Engine(directory)
        worker: Any = self.served.llm.llm_engine.model_executor.driver_worker.worker
        config = worker.vllm_config
        target = UpdatedModel(worker.model_runner.get_model(), config.model_config, config)
        self.engine = VllmEngine(lambda: target, WorkerGate(worker), lambda: None, "", "vLLM")

    def move(self) -> None:
        """Give every parameter that is written in place other memory, as offloading and bringing back does."""
        recorded = self.engine._loading.recorded
        assert recorded is not None
        modules = dict(recorded._model.named_modules())
        for name in (name for name, mode in recorded.modes.items() if mode is ApplyMode.IN_PLACE):
            for parameter in modules[name]._parameters.values():
                if parameter is not None:
                    parameter.data = parameter.data.clone()

    def update(
        self, directory: Path, specs: list[TensorSpec], nbytes: int, before: Callable[[], None] = lambda: None
    ) -> str:
        """Bring a version; what the engine says of how it did that. ``before`` is called when all of it is loaded."""
        self._load(directory, specs, nbytes)
        before()
        self.engine.finish()
        self.engine.certify()
        self.engine.resume()
        return self.engine.apply_summary

    def _load(self, directory: Path, specs: list[TensorSpec], nbytes: int) -> None:
        self.engine.begin()
        share = self.engine.share()
        self.engine.prepare(specs, share)
        for number, bucket in enumerate(buckets(directory, nbytes, self.engine.device, share)):
            if number % 2 and not self.engine.unread:
                self._have_read(bucket)
                continue
            fence = self.engine.load(bucket)
            if fence is not None:
                fence.synchronize()

    def _have_read(self, bucket: LoadedBucket) -> None:
        """Have the system read a bucket to where the engine wants it, as out of another process."""
        starts, sizes = zip(*((at, nbytes) for _, _, at, nbytes, *_ in bucket.places()), strict=True)
        addresses = [bucket.raw.data_ptr() + at for at in starts]
        runs = DistantRuns(DistantMemory(starts, addresses, sizes, this_process().read))
        read = LoadedBucket((bucket.key, "read"), runs, bucket.places)
        landing = self.engine.landing(read)
        if landing is None:
            self.engine.load(read)
        else:
            runs.memory.read_into(landing)
            self.engine.landed(read)

    def stage(self, directory: Path, specs: list[TensorSpec], nbytes: int) -> str:
        """Load a version beside what is served, where that can be done; else why not."""
        if not (why := self.engine.can_stage(BUDGET)):
            self.engine.stage()
            self._load(directory, specs, nbytes)
            self.engine.meanwhile()
            self.engine.finish()
        return why

    def exchange(self) -> None:
        """Exchange what is staged and what is served."""
        self.engine.exchange()
        self.engine.certify()
        self.engine.resume()


def check(folder: Path, family: str, nbytes: int) -> None:
    """Update there and back twice, and with parameters that were replaced before an update and during one."""
    directories = [folder / f"{family}-{seed}" for seed in (1, 2)]
    second = reference_of(MODULE, directories[1])
    updated = Updated(directories[0])
    first = updated.served.answers()
    assert first[1] != second[1]
    specs = specs_of(directories[0])
    for number, (directory, expected) in enumerate(((1, second), (0, first), (1, second), (0, first))):
        told = updated.update(directories[directory], specs, nbytes)
        _compare(updated.served.answers(), expected)
        assert told.startswith("recorded in" if number == 0 else "replayed in"), told
        print(f"{family} {number}: {told}", flush=True)
    _stage_and_take_back(updated, directories, (first, second), specs, nbytes)
    updated.move()
    told = updated.update(directories[1], specs, nbytes)
    assert told.startswith("recorded in"), told
    _compare(updated.served.answers(), second)
    try:
        updated.update(directories[0], specs, nbytes, updated.move)
    except UpdateError as error:
        updated.engine.taint(str(error))
    else:
        raise AssertionError("parameters that were replaced during an update went unnoticed")
    updated.update(directories[0], specs, nbytes)
    updated.engine.resume()
    _compare(updated.served.answers(), first)
    recorded = updated.engine._loading.recorded
    assert recorded is not None
    loaded = [name for name, mode in recorded.modes.items() if mode is ApplyMode.LOADER]
    print(f"{family}: exact; by the loader: {', '.join(loaded) or 'nothing'}", flush=True)


def _stage_and_take_back(
    updated: Updated, directories: list[Path], expected: tuple[Answers, Answers], specs: list[TensorSpec], nbytes: int
) -> None:
    """Where it can be done: stage the second version, exchange it, take it back, and stage it again."""
    for _ in range(2):
        if why := updated.stage(directories[1], specs, nbytes):
            print(f"staged: no, {why}", flush=True)
            return
        _compare(updated.served.answers(), expected[0])
        for number in (1, 0):
            updated.exchange()
            _compare(updated.served.answers(), expected[number])
            if number:
                updated.engine.restore()
    print("staged: yes, exchanged and taken back", flush=True)


def _compare(found: Answers, expected: Answers) -> None:
    differing = [name for name in expected[1] if found[1].get(name) != expected[1][name]]
    assert not differing, f"{differing[:5]} differ"
    assert found[0] == expected[0], f"{found[0]} is not {expected[0]}"


def main(
    family: Annotated[list[str] | None, typer.Option(help="Of models; by default all.")] = None,
    hidden: Annotated[int, typer.Option(help="Width of qwen3, moe and their like.")] = 128,
    layers: Annotated[int, typer.Option(help="Their depth.")] = 2,
    bucket: Annotated[int, typer.Option(help="Bytes of a bucket.")] = BUCKET_BYTES,
    from_directory: Annotated[Path | None, typer.Option("--reference", help="Only say what this one answers.")] = None,
    only: Annotated[Path | None, typer.Option(help="Check one family, with checkpoints from this folder.")] = None,
) -> None:
    """Check and time recorded loaders."""
    os.environ.update(ENVIRONMENT)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    families = family or sorted(tiny_models.FAMILIES)
    if from_directory is not None:
        reference(from_directory)
    elif only is not None:
        check(only, families[0], bucket)
    else:
        failed = []
        for name in families:
            with tempfile.TemporaryDirectory() as folder:
                for seed in (1, 2):
                    tiny_models.write(Path(folder) / f"{name}-{seed}", seed, name, hidden, layers)
                try:
                    print(output_of(MODULE, "--only", folder, "--family", name, f"--bucket={bucket}"))
                except subprocess.CalledProcessError as error:
                    print(error.output)
                    failed.append(name)
        if failed:
            sys.exit(f"not as from the files: {', '.join(failed)}")


if __name__ == "__main__":
    typer.run(main)
