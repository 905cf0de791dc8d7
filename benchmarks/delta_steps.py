"""Measures what publishing a step takes when 1 % and 5 % of the elements have changed, against publishing everything.

Weights are BF16, changed at random places, and brought to a module in another process: over shared memory, and over
links between two network namespaces, where root and iproute2 allow that. The targets are those of a link of 10 Gbit/s.
Two cores do not fill that by gloo, so one of 1 Gbit/s is measured as well, where all that is not sending weighs less. A
server that sends everything and one that sends deltas take turns; what is served is compared after each round. Usage:
``python -m benchmarks.delta_steps``. With ``--device cuda`` both have their weights on one GPU: ``--mib 8192 --mbit 0``
for shared memory, and ``--mib 0 --link-mib 8192 --mbit 10000`` for a link, on a machine with cores enough to fill it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from benchmarks._delta_worker import Figures
from benchmarks._links import NoLinksError, hosts
from benchmarks._report import Row, report
from benchmarks.p2p_joiners import Machines, running, said

WORKER = (sys.executable, "-m", "benchmarks._delta_worker")
SHARES = (0.01, 0.05)
TARGETS = ("<=0.06", "<=0.15")
MEMORY_PASSES = 2.5
"""As many copies' worth of memory is read and written by both ends of a delta at least, where they share their cores:
the source copies the weights and compares two versions, which reads as much as a copy reads and writes, and the sink
reads what it serves to prove it."""
TARGET_MBIT = 10_000
"""Of a link of that rate."""


def on_one_host(mib: int, rounds: int, device: str) -> Figures:
    """Trainer and engine on this host, with weights on that device."""
    common = ("--nbytes", str(mib << 20), "--device", device)
    with ExitStack() as stack:
        serving = stack.enter_context(running(_start("serve", *common)))
        return _figures(stack, _start("train", *common, *_training(said(serving), rounds)))


def over_a_link(mib: int, mbit: int, rounds: int, device: str) -> Figures:
    """Trainer and engine on two hosts, with weights on that device.

    Raises:
        NoLinksError: this machine does not allow shaped links.
    """
    nbytes = mib << 20
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = stack.enter_context(hosts([mbit * 1_000_000] * 2))
        machines = Machines(folder, made, WORKER)
        address = f"tcp://{made[1].address}:0"
        common = ("--nbytes", nbytes, "--device", device)
        serving = stack.enter_context(
            running(machines.start(1, "serve", *common, "--address", address, transport="gloo"))
        )
        training = machines.start(0, "train", *common, *_training(said(serving), rounds), transport="gloo")
        return _figures(stack, training)


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*WORKER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _training(sink: str, rounds: int) -> tuple[str, ...]:
    shares = (word for share in SHARES for word in ("--share", str(share)))
    return "--sink", sink, "--rounds", str(rounds), *shares


def _figures(stack: ExitStack, process: subprocess.Popen[str]) -> Figures:
    return msgspec.json.decode(said(stack.enter_context(running(process))), type=Figures)


def rows(where: str, found: Figures, target: Sequence[str]) -> list[Row]:
    """What was measured over one way."""
    whole = sum(found.whole.values())
    made = []
    for (share, phases), limit in zip(found.deltas.items(), target, strict=True):
        seconds = sum(phases.values())
        made.append(
            Row(
                f"publish over {where}, {share:.0%} changed",
                seconds / whole,
                "everything",
                limit,
                f"{seconds:.3f} s and {whole:.3f} s; {found.moved[share]:.2%} of the bytes; held "
                f"{found.paused[share] * 1e3:.1f} ms and {found.whole_paused * 1e3:.1f} ms; {_told(phases)}; "
                f"everything: {_told(found.whole)}",
            )
        )
    least = MEMORY_PASSES * found.copying
    told = f"{MEMORY_PASSES} copies of all bytes, of {found.copying:.3f} s each"
    made.append(Row(f"publish over {where}, at the rate of memory", least / whole, "everything", "", told))
    return made


def _told(phases: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in phases.items() if seconds > 2e-3) + " ms"


def main(
    mib: Annotated[int, typer.Option(help="Size of the weights on one host; 0 leaves it out.")] = 512,
    device: Annotated[str, typer.Option(help="Where weights are, as 'cpu' or 'cuda'.")] = "cpu",
    link_mib: Annotated[int, typer.Option(help="Size of the weights over the link.")] = 512,
    mbit: Annotated[list[int] | None, typer.Option(help="Rate of a link, or 0; by default 1000, and 10000.")] = None,
    rounds: Annotated[int, typer.Option(help="That are counted.")] = 3,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Measure publishing by deltas."""
    where = "shared memory" if device == "cpu" else f"one {device}"
    found = rows(where, on_one_host(mib, rounds, device), ("", "")) if mib else []
    try:
        for rate in (1_000, TARGET_MBIT) if mbit is None else filter(None, mbit):
            targets = TARGETS if rate >= TARGET_MBIT else ("", "")
            link = f"a link of {rate} Mbit/s, weights on {device}"
            found += rows(link, over_a_link(link_mib, rate, rounds, device), targets)
    except NoLinksError as error:
        print(f"shaped links cannot be made here: {error}", file=sys.stderr)
    report(found, json)


if __name__ == "__main__":
    typer.run(main)
