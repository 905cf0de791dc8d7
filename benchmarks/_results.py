"""Writes results as a page: what was measured, on which machine, by which command and when."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks._row import Row

NOTICE = "<!-- Written by the benchmark, see benchmarks/_results.py. Do not edit. -->"


class Measured(NamedTuple):
    """Where results come from.

    Attributes:
        command: what was run.
        machine: its processor and its GPUs.
        software: versions of what the figures depend on.
        month: when, as ``November 2026``.
    """

    command: str
    machine: str
    software: str
    month: str


def here() -> Measured:
    """This process, on this machine, now."""
    cuda = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] if cuda else []
    cores = len(os.sched_getaffinity(0))
    return Measured(
        command=_command(sys.orig_argv),
        machine=", ".join([f"{_processor()}, {cores} cores", *gpus]),
        software=f"Python {platform.python_version()}, torch {torch.__version__}"
        + (f", CUDA {torch.version.cuda}" if cuda else ""),
        month=f"{datetime.now(UTC):%B %Y}",
    )


def page(title: str, rows: Sequence[Row], measured: Measured) -> str:
    """A page of Markdown with ``rows`` as a table, and where they come from."""
    facts = (f"* {name}: {fact}" for name, fact in measured._asdict().items() if name != "command")
    return (
        "\n\n".join([f"# {title}", NOTICE, "\n".join([f"* command: `{measured.command}`", *facts]), table(rows)]) + "\n"
    )


def table(rows: Sequence[Row]) -> str:
    """``rows`` as a table of Markdown. A ratio that misses its target is set in bold."""
    lines = ["| measured | ratio | against | target | figures |", "| --- | ---: | --- | --- | --- |"]
    for row in rows:
        ratio = f"**{row.ratio:.2f}**" if row.met is False else f"{row.ratio:.2f}"
        lines.append(f"| {row.name} | {ratio} | {row.against} | {row.target} | {row.detail} |")
    return "\n".join(lines)


def _command(arguments: Sequence[str]) -> str:
    """The command line without where it is told to write."""
    told = shlex.join(["python", *arguments[1:]])
    return re.sub(r" --json[ =]\S+", "", told)


def _processor() -> str:
    """The processor's name, as the kernel gives it."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else platform.machine()
