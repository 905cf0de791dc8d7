"""The links of the host that the tests run on are measured."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ckpt_transport.rates import HostLink, HostRates, LinkKind, LinkRate, measure
from ckpt_transport.rates.network import network_rate


def test_given_this_host_then_each_link_has_a_rate_and_is_announced_once() -> None:
    told: list[tuple[HostLink, int, int]] = []
    rates = measure(lambda *step: told.append(step))
    assert [number for _, number, _ in told] == list(range(told[0][2]))
    assert {each.link for each in rates.links} <= {link for link, _, _ in told}
    for kind in (LinkKind.MEMORY, LinkKind.CORE, LinkKind.LOOPBACK):
        assert rates.rate(kind) > 1e6


def test_given_a_host_without_loopback_then_the_other_links_are_measured_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise OSError("Cannot assign requested address")

    monkeypatch.setattr(socket, "create_server", refuse)
    rates = measure(lambda *_: None)
    assert rates.rate(LinkKind.LOOPBACK) == 0.0
    assert rates.rate(LinkKind.MEMORY) > 0
    assert "TCP over loopback cannot be measured: Cannot assign" in caplog.text


def test_given_a_link_that_is_not_known_then_its_rate_is_zero() -> None:
    rates = HostRates((LinkRate(HostLink(LinkKind.PEER, "a", "b"), 3e11),))
    assert rates.rate(LinkKind.PEER, "a", "b") == 3e11
    assert rates.rate(LinkKind.PEER, "b", "a") == 0.0


def test_given_network_devices_then_rdma_counts_before_ethernet_and_virtual_interfaces_never(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")

    assert network_rate(tmp_path / "sys", tmp_path / "dev") == 0.0
    for name, speed in (("eth0", "25000"), ("eth1", "25000"), ("eth2", "-1"), ("docker0", "10000")):
        write(f"sys/class/net/{name}/speed", speed)
        if name != "docker0":
            write(f"sys/class/net/{name}/device/vendor", "0x15b3")
    assert network_rate(tmp_path / "sys", tmp_path / "dev") == 50e9 / 8
    write("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE")
    write("sys/class/infiniband/mlx5_0/ports/1/rate", "400 Gb/sec (4X NDR)")
    write("sys/class/infiniband_verbs/uverbs0/ibdev", "mlx5_0")
    assert network_rate(tmp_path / "sys", tmp_path / "dev") == 50e9 / 8
    write("dev/infiniband/uverbs0", "")
    assert network_rate(tmp_path / "sys", tmp_path / "dev") == 400e9 / 8
