"""Measures what a trainer whose ranks have shards of many small tensors pays at each step, besides moving bytes.

As many tensors as half of Qwen3-30B-A3B has, of 4 KiB each. Usage: ``python -m benchmarks.sharded_steps``.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks._report import Row, report
from benchmarks._sinks import sinks
from benchmarks.lent_steps import COUNT, TENSOR_BYTES
from benchmarks.sharded import Trainer


def measure(ranks: int = 2, steps: int = 9) -> list[Row]:
    """Rows for the second step and later."""
    nbytes = COUNT * TENSOR_BYTES
    with sinks(1, nbytes, TENSOR_BYTES) as (sink,):
        trainer = Trainer(ranks, nbytes, TENSOR_BYTES, sink.address)
        first, *later = [trainer.bring("publish", number) for number in range(steps)]
        sink.ask("values")
        assert sink.answer() == (f"v{steps - 1}", {float(steps - 1)})
        trainer.stop()
    beside, processor = (median(each) for each in zip(*((t.seconds - t.run, t.processor) for t in later), strict=True))
    return [
        Row(
            name=f"publish {COUNT:,} small tensors of {ranks} ranks again, all but the run",
            ratio=beside / (first.seconds - first.run),
            against="the first time",
            target="",
            detail=f"{beside * 1e3:.0f} ms; of the processor, in the busiest rank: {processor * 1e3:.0f} ms",
        )
    ]


def main(
    ranks: Annotated[int, typer.Option(help="Of the trainer.")] = 2,
    steps: Annotated[int, typer.Option(help="Of training.")] = 9,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Measure publishing shards of the same tensors at each step."""
    report(measure(ranks, steps), json)


if __name__ == "__main__":
    typer.run(main)
