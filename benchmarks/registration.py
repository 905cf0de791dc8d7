"""Measures registration: of files against reading them, and of tensors against copying as many bytes.

Run with ``python -m benchmarks.registration``. The files are just written, so they are in the page cache. A repetition
reads them into private memory that is allocated for it, registers them in a new shared pool, and registers them again
in the pool that the first registration left. Tensors are registered in turns with a copy of as many bytes by all cores.
The ratios are of the medians of all repetitions. ``--device cuda`` measures tensors of the shapes of real models on one
GPU, against its copy engine, and on its host.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

from benchmarks._models import dense, mixture
from benchmarks._register_tensors import cast_on_host, from_gpu, from_host, synthetic
from benchmarks._report import Row, report
from ckpt_transport.checkpoint import Store

SHARD_BYTES = 256 << 20
TENSOR_BYTES = 32 << 20
TARGET = ">=0.7"


def write_shards(directory: Path, nbytes: int) -> list[Path]:
    """About ``nbytes`` of BF16 tensors of 32 MiB and one small one per shard, in shards of 256 MiB."""
    paths = [directory / f"model-{number:05}.safetensors" for number in range(max(1, nbytes // SHARD_BYTES))]
    tensors = torch.randint(0, 256, (SHARD_BYTES // TENSOR_BYTES, TENSOR_BYTES), dtype=torch.uint8).view(torch.bfloat16)
    for path in paths:
        named = {f"{path.stem}.{index}": tensor for index, tensor in enumerate(tensors)}
        save_file({**named, f"{path.stem}.norm": torch.ones(4096, dtype=torch.bfloat16)}, path)
    return paths


def read_plainly(paths: Sequence[Path], threads: int) -> None:
    """Read every file, whole, into memory allocated for it; ``threads`` files at a time."""
    sizes = [path.stat().st_size for path in paths]
    memory = torch.empty(sum(sizes), dtype=torch.uint8).numpy().data
    starts = [sum(sizes[:index]) for index in range(len(sizes))]

    def read_file(path: Path, start: int, nbytes: int) -> None:
        with path.open("rb", buffering=0) as file:
            done = 0
            while done < nbytes:
                done += file.readinto(memory[start + done : start + nbytes])

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(read_file, paths, starts, sizes))


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(gib: float = 2.0, repetitions: int = 7) -> list[Row]:
    """Compare registering files with reading, and registering tensors with copying; ``gib`` of each."""
    nbytes = int(gib * 2**30)
    return [
        *measure_files(gib, repetitions),
        *from_host("as of a dense model", synthetic(nbytes, 32 << 20), repetitions),
        *from_host("as of a mixture", synthetic(nbytes, 3 << 20), repetitions),
        *cast_on_host("as of a dense model", synthetic(nbytes, 32 << 20), repetitions),
        *cast_on_host("as of a mixture", synthetic(nbytes, 3 << 20), repetitions),
    ]


def measure_gpu(repetitions: int = 5) -> list[Row]:
    """Compare registering tensors of the shapes of real models with copying, from one GPU and on its host."""
    return [
        *from_gpu("half of Qwen3-30B-A3B", mixture(), repetitions),
        *from_gpu("Qwen3-8B", dense(), repetitions),
        *from_host("Qwen3-8B", dense(), repetitions),
    ]


def measure_files(gib: float = 2.0, repetitions: int = 7, threads: int | None = None) -> list[Row]:
    """Compare registering with reading.

    Args:
        gib: size of the checkpoint; needs as much on disk, twice as much memory, and room in ``/dev/shm``.
        repetitions: of the three measurements, which take turns.
        threads: that read, on both sides; by default one per processor, at most 8.
    """
    threads = threads or min(8, os.cpu_count() or 1)
    plain: list[float] = []
    first: list[float] = []
    following: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        paths = write_shards(Path(name), int(gib * 2**30))
        nbytes = sum(path.stat().st_size for path in paths)
        read_plainly(paths, threads)
        for _ in range(repetitions):
            plain.append(timed(lambda: read_plainly(paths, threads)))
            with Store(threads=threads) as store:
                first.append(timed(lambda: store.register("first", files=paths)))
                store.unregister("first")
                following.append(timed(lambda: store.register("next", files=paths)))
    rate = {
        kind: nbytes / median(seconds) / 1e9
        for kind, seconds in (("plain", plain), ("first", first), ("next", following))
    }
    return [
        Row(
            f"register page-cached files, {pool}",
            rate[kind] / rate["plain"],
            "reading them into fresh private memory",
            TARGET,
            f"{rate[kind]:.2f} against {rate['plain']:.2f} GB/s; {nbytes / 2**30:.1f} GiB, {threads} threads, "
            f"medians of {repetitions}",
        )
        for kind, pool in (("first", "new shared pool"), ("next", "reused shared pool"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the checkpoint in GiB")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where tensors are registered from")
    parser.add_argument("--json", type=Path, help="write the ratios to this file")
    arguments = parser.parse_args()
    report(measure_gpu() if arguments.device == "cuda" else measure(arguments.gib), arguments.json)


if __name__ == "__main__":
    main()
