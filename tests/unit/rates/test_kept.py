"""Rates are kept for the machine that they were measured on, and nothing else is taken for them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from ckpt_transport.cli.app import app
from ckpt_transport.cli.rates import busy
from ckpt_transport.errors import ConfigError
from ckpt_transport.rates import HostLink, HostRates, LinkKind, LinkRate, keep, kept
from ckpt_transport.rates.kept import KeptRates, rates_path
from ckpt_transport.rates.machine import look_at, machine

RATES = HostRates((LinkRate(HostLink(LinkKind.MEMORY), 12e9), LinkRate(HostLink(LinkKind.PEER, "a", "b"), 3e11)))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_given_rates_that_are_kept_then_they_are_found_again_and_only_this_user_reads_them(cache: Path) -> None:
    assert kept() is None
    path = keep(RATES)
    assert kept() == RATES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(cache.rglob("*.json")) == [path]
    newer = HostRates(RATES.links[:1])
    assert keep(newer) == path
    assert kept() == newer


@pytest.mark.parametrize("damage", [b"", b"{", b'{"machine": 1}', b'{"rates": {"links": []}}', b"\xff"])
def test_given_a_file_that_says_nothing_then_it_counts_as_none_and_is_written_anew(damage: bytes) -> None:
    path = keep(RATES)
    path.write_bytes(damage)
    assert kept() is None
    keep(RATES)
    assert kept() == RATES


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_given_a_rate_that_nothing_has_then_the_file_counts_as_none(rate: float) -> None:
    path = keep(RATES)
    path.write_bytes(path.read_bytes().replace(b"12000000000.0", str(rate).encode()))
    assert kept() is None


def test_given_rates_of_another_machine_then_they_count_as_none() -> None:
    """Given a file that somebody has copied, or a machine that has other GPUs now."""
    other = msgspec.structs.replace(machine(), gpus=("GPU-1",))
    assert rates_path(other) != rates_path(machine())
    path = keep(RATES)
    path.write_bytes(msgspec.json.encode(KeptRates(other, RATES)))
    assert kept() is None


def test_given_a_folder_that_cannot_be_written_then_the_error_names_the_cure_and_nothing_is_left(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match="set XDG_CACHE_HOME"):
        keep(RATES)
    assert kept() is None


def test_given_what_the_kernel_says_then_the_machine_is_known_without_touching_a_device(tmp_path: Path) -> None:
    cpuinfo, nvidia = tmp_path / "cpuinfo", tmp_path / "nvidia"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: AMD EPYC 9654\n\nprocessor\t: 1\n")
    for number, uuid in enumerate(("GPU-b", "GPU-a")):
        information = nvidia / "gpus" / f"0000:0{number}:00.0" / "information"
        information.parent.mkdir(parents=True)
        information.write_text(f"Model: \t\t NVIDIA H200\nGPU UUID: \t {uuid}\n")
    (nvidia / "version").write_text("NVRM version: 580.1\nGCC version: 12\n")
    found = look_at(cpuinfo, nvidia)
    assert (found.cpu, found.gpus, found.driver) == ("AMD EPYC 9654", ("GPU-a", "GPU-b"), "NVRM version: 580.1")
    bare = look_at(tmp_path / "none", tmp_path / "none")
    assert (bare.cpu, bare.gpus, bare.driver) == (os.uname().machine, (), "")


def test_given_a_host_that_others_keep_busy_then_the_command_says_so_and_asks_for_another_time() -> None:
    assert busy(9.1, 2) == "measured while the load was 9.1 on 2 cores: measure again when the host is idle"
    assert busy(0.8, 1) == "measured while the load was 0.8 on 1 core: measure again when the host is idle"
    assert busy(0.9, 2) == busy(0.0, 128) == ""


def test_given_the_command_then_it_shows_rates_with_their_unit_and_later_says_that_they_are_known() -> None:
    runner = CliRunner()
    before = runner.invoke(app, ["transports"])
    assert "the links of this host were not measured" in before.stdout
    shown = runner.invoke(app, ["transports", "--measure"])
    assert shown.exit_code == 0, shown.output
    assert all(word in shown.stdout for word in ("GB/s", "host memory", "TCP over loopback", "kept in"))
    measured = kept()
    assert measured is not None
    again = runner.invoke(app, ["transports"])
    assert f"measured rates of {len(measured.links)} links" in again.stdout
    listed = runner.invoke(app, ["transports", "--measure", "--json"])
    assert msgspec.json.decode(listed.stdout, type=HostRates).rate(LinkKind.MEMORY) > 0
