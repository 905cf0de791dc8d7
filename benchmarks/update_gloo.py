"""Measures an update over gloo against a bare gloo broadcast of the same bytes in 64 MiB pieces.

Both run between the same three processes, one source and two sinks, in turns. The update also copies every byte into
the parameters and commits; the bare broadcast does nothing else. How long that copy takes by itself is measured too:
where the bare broadcast keeps every core busy, an update that receives into slots cannot take less than both together.
Usage: ``python -m benchmarks.update_gloo``.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks._report import Row, report
from benchmarks._sinks import BareGloo, ask_all, sinks, tensors
from ckpt_transport import Config, ParameterServer


def measure(gib: float = 1.0, updates: int = 7, bucket_bytes: str = "") -> list[Row]:
    nbytes = int(gib * (1 << 30))
    bare_times, copies, update_times, runs, largest = [], [], [], [], 0
    settings = Config.load(transport="gloo", bucket_bytes=bucket_bytes or None)
    with tempfile.TemporaryDirectory() as folder, sinks(2, nbytes) as running:
        addresses = [sink.address for sink in running]
        for rank, sink in enumerate(running, start=1):
            sink.ask("gloo", f"{folder}/store", rank, 3)
        bare = BareGloo(f"{folder}/store", 0, 3)
        for sink in running:
            sink.answer()
        ask_all(running, "fill source")
        source = {name: tensor.contiguous() for name, tensor in tensors(nbytes, 1.0).items()}
        with ParameterServer(settings) as server:
            server.register("v", tensors=source)
            for number in range(updates + 1):
                started = time.perf_counter()
                for sink in running:
                    sink.ask("broadcast")
                bare.broadcast(list(source.values()))
                for sink in running:
                    sink.answer()
                bare_times.append(time.perf_counter() - started)
                copies.append(ask_all(running, "copy"))
                done = server.update("v", addresses)
                assert done is not None, number
                update_times.append(done.seconds)
                runs.append(done.phases["run"])
                largest = max(bucket.nbytes for bucket in done.plan.buckets)
        for sink in running:
            sink.ask("values")
            assert sink.answer() == ("v", {1.0})
    bare_median, update_median = median(bare_times[1:]), median(update_times[1:])
    detail = (
        f"bare {bare_median * 1e3:.0f} ms = {nbytes / bare_median / 1e9:.2f} GB/s, "
        f"copy {median(copies[1:]) * 1e3:.0f} ms, update {update_median * 1e3:.0f} ms "
        f"(run {median(runs[1:]) * 1e3:.0f} ms), buckets of {largest >> 20} MiB"
    )
    return [
        Row(
            name=f"gloo update, 1 source and 2 sinks, {gib:g} GiB",
            ratio=bare_median / update_median,
            against="the rate of a bare gloo broadcast in 64 MiB pieces",
            target=">=0.9",
            detail=detail,
        )
    ]


def main(
    gib: Annotated[float, typer.Option(help="Size of the weights.")] = 1.0,
    updates: Annotated[int, typer.Option(help="Repetitions.")] = 7,
    bucket_bytes: Annotated[str, typer.Option(help="Size of a bucket.")] = "",
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Update two sinks over gloo."""
    report(measure(gib, updates, bucket_bytes), json)


if __name__ == "__main__":
    typer.run(main)
