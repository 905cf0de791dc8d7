"""Compares our simulator with LogGOPSim, on the same plans: hosts of one sink, all links of 200 Mbit/s.

Plans are written in GOAL, as ``ckpt-transport simulate --goal`` does. LogGOPSim knows one network, in which every host
takes in and sends one message at a time; ours shares links among flows. It is built from its sources
(github.com/spcl/LogGOPSim: ``txt2bin`` and ``LogGOPSim``). Usage: ``python -m benchmarks.goal_check FOLDER``.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks._report import Row, report
from ckpt_transport.planning import Plan
from ckpt_transport.simulator import SimulatedWorld, simulate, write_goal
from ckpt_transport.transports.interface import FanOut
from tests.unit.simulator.small import cluster, planned, world

NIC = 25e6
GAP = round(1e9 / NIC)
"""Nanoseconds for a byte."""
NETWORK = {"L": 0, "o": 0, "g": 0, "G": GAP}
EAGER = 1 << 30
"""Messages of fewer bytes are sent before they are asked for."""
BUCKETS = 32
ENDED = re.compile(r"host \d+: (\d+)")


def rows(folder: Path) -> Iterator[Row]:
    """One row for each plan, and the median."""
    off = []
    for hosts in (3, 4, 8, 16):
        for transport, fan_out in (("gloo+shm", FanOut.TREE), ("gloo-chain+shm", FanOut.LINEAR)):
            for depth in (1, 4):
                of = world(cluster(hosts, nic=NIC), fan_out=fan_out)
                plan = planned(of, BUCKETS, transport, ring_depth=depth)
                ours = simulate(plan, of).seconds
                asked, eager = (_loggopsim(folder, plan, of, most) for most in (0, EAGER))
                off.append(abs(ours / asked - 1))
                yield Row(
                    f"{hosts} hosts, {transport}, ring of {depth}",
                    ours / asked,
                    "LogGOPSim",
                    "",
                    f"{ours:.2f} s, {asked:.2f} s where receivers ask for a message, {eager:.2f} s where they do not",
                )
    yield Row("difference: median", median(off), "LogGOPSim", "", f"{len(off)} plans")
    yield Row("difference: largest", max(off), "LogGOPSim", "", f"{len(off)} plans")


def _loggopsim(folder: Path, plan: Plan, of: SimulatedWorld, eager: int) -> float:
    """Seconds until the last host has done all, by LogGOPSim."""
    with tempfile.TemporaryDirectory() as scratch:
        text, binary = Path(scratch, "plan.goal"), Path(scratch, "plan.bin")
        write_goal(text, plan, of)
        subprocess.run([folder / "txt2bin", "-i", text, "-o", binary], check=True, stdout=subprocess.DEVNULL)
        options = ["--batchmode", *(f"-{name}{value}" for name, value in {**NETWORK, "S": eager}.items())]
        command: list[str | Path] = [folder / "LogGOPSim", "-f", binary, *options]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return max(int(found) for found in ENDED.findall(said)) / 1e9


def main(
    folder: Annotated[Path, typer.Argument(help="Where txt2bin and LogGOPSim are.", exists=True)],
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Simulate small plans by both."""
    report(list(rows(folder)), json)


if __name__ == "__main__":
    typer.run(main)
