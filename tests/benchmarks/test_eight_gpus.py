"""The benchmark of one engine on all GPUs of a host runs on a CPU, too."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import eight_gpus
from benchmarks._attempts import Attempts
from benchmarks._models import tensors
from benchmarks._slices import Slices
from benchmarks.eight_gpus import Case, measure, narrowed
from benchmarks.end_to_end import Device
from benchmarks.seed_table import GLM


def test_given_no_gpu_when_an_engine_of_two_small_ranks_is_measured_then_every_row_is_there() -> None:
    case = Case(narrowed(layers=1, narrow=64), 2, Device.CPU, "8xH800")
    attempts = Attempts()
    rows = list(measure(case, rounds=1, attempts=attempts))
    assert [row.name.removeprefix(f"{case.title}: ") for row in rows] == [
        "from the host",
        "metadata and plan, warm-up before the first update",
        "metadata and plan, later updates",
        "from the host",
        "a rank joins",
        "lent by trainers",
    ]
    assert "simulated" in rows[3].detail
    assert all(row.ratio > 0 for row in rows)
    assert attempts.failed == []


@pytest.mark.parametrize("size", [1, 2, 4])
def test_given_a_weight_then_the_ranks_of_an_engine_hold_all_of_it_together(size: int) -> None:
    case = Case(narrowed(layers=1, narrow=32), size, Device.CPU, "8xH800")
    ranks = [Slices(case.shapes, rank, size, torch.device("cpu")) for rank in range(size)]
    for rank in ranks:
        rank.load(tensors(case.shapes, 3).items())
        assert rank.wrong(3) == []
        assert rank.wrong(4)
    held = sum(parameter.numel() for rank in ranks for parameter in rank.parameters())
    whole = sum(tensor.numel() for tensor in tensors(case.shapes, 3).values())
    copied = sum(shape[0] for name, shape in case.shapes.items() if "norm" in name)
    routers = sum(shape[0] * shape[1] for name, shape in case.shapes.items() if ".gate.weight" in name)
    assert held == whole + (size - 1) * (copied + routers)


def test_given_eight_gpus_then_the_prediction_needs_none_of_them(tmp_path: Path) -> None:
    path = tmp_path / "predicted.json"
    done = CliRunner().invoke(app(), ["--predict", "--layers", "2", "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert 0 < msgspec.json.decode(path.read_bytes())["seconds"] < 10
    assert GLM.layers == 46


def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(eight_gpus.main)
    return made
