"""Given RDMA devices that a process may use, transports count on more than TCP brings, and auto takes them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from ckpt_transport.cli.app import app
from ckpt_transport.config import Config
from ckpt_transport.planning import Plan, Role, Settings, plan
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Transport
from ckpt_transport.transports.rdma.bandwidth import expected_bandwidth
from ckpt_transport.transports.rdma.devices import rdma_devices
from ckpt_transport.transports.rdma.ucx import ucx_devices
from ckpt_transport.update.bandwidths import bandwidths, between_hosts
from ckpt_transport.update.messages import Join
from ckpt_transport_gloo import GlooTransport
from ckpt_transport_mooncake import MooncakeOptions, MooncakeTransport
from ckpt_transport_nixl import NixlTransport
from ckpt_transport_ucx import UcxTransport
from tests.unit.worlds import manifest, topology

FAST, SLOW = 12e9, 100e9 / 8 / 2
"""What is expected of 400 Gb/s, and of 100 Gb/s."""
RATES = {"mlx5_0": "100 Gb/sec (4X EDR)", "mlx5_1": "400 Gb/sec (4X NDR)"}
OVER_RDMA: Mapping[str, type[Transport]] = {
    kind.name: kind for kind in (MooncakeTransport, NixlTransport, UcxTransport)
}


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Two RDMA devices in sysfs, and their files in /dev."""
    for number, (name, rate) in enumerate(RATES.items()):
        port = tmp_path / "sys" / "class" / "infiniband" / name / "ports" / "1"
        write(port / "state", "4: ACTIVE")
        write(port / "rate", rate)
        write(tmp_path / "sys" / "class" / "infiniband_verbs" / f"uverbs{number}" / "ibdev", name)
        write(tmp_path / "dev" / "infiniband" / f"uverbs{number}")
    return tmp_path


@pytest.fixture
def here(host: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugins run on that host, with a UCX that was built for RDMA, and nobody has set a variable."""
    for name in ("UCX_TLS", "UCX_NET_DEVICES", "NCCL_IB_HCA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ckpt_transport_mooncake.plugin.rdma_devices", partial(rdma_devices, host / "sys"))
    for plugin in ("nixl", "ucx"):
        monkeypatch.setattr(f"ckpt_transport_{plugin}.plugin.ucx_devices", partial(ucx_devices, host / "sys"))
    for plugin in ("mooncake", "nixl", "ucx"):
        expected = partial(expected_bandwidth, dev=host / "dev")
        monkeypatch.setattr(f"ckpt_transport_{plugin}.plugin.expected_bandwidth", expected)
    monkeypatch.setattr("ckpt_transport_ucx.plugin.has_verbs", lambda: True)
    return host


# -- what a host says -----------------------------------------------------------------------------------------------


def test_given_several_devices_then_the_slowest_counts_and_no_more_than_is_believed(host: Path) -> None:
    slow, fast = rdma_devices(host / "sys")

    assert (slow.rate, slow.verbs, fast.verbs) == (100e9 / 8, "uverbs0", "uverbs1")
    assert expected_bandwidth([slow, fast], host / "dev") == SLOW
    assert expected_bandwidth([fast], host / "dev") == FAST


def test_given_a_container_that_has_no_files_of_the_devices_then_nothing_is_expected_of_them(host: Path) -> None:
    assert expected_bandwidth(rdma_devices(host / "sys"), host / "elsewhere") == 0.0


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, ["mlx5_0", "mlx5_1"]),
        ({"UCX_TLS": "rc,cuda_copy"}, ["mlx5_0", "mlx5_1"]),
        ({"UCX_TLS": "tcp,self"}, []),
        ({"UCX_TLS": "^ib"}, []),
        ({"UCX_NET_DEVICES": "mlx5_1:1,eth0"}, ["mlx5_1"]),
        ({"UCX_NET_DEVICES": "eth0"}, []),
    ],
    ids=str,
)
def test_given_variables_of_ucx_then_only_the_devices_that_they_allow_are_counted(
    host: Path, environment: dict[str, str], names: list[str]
) -> None:
    assert [device.name for device in ucx_devices(host / "sys", environment)] == names


# -- what transports say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVER_RDMA)
def test_given_rdma_then_a_transport_expects_more_than_its_traits_say(here: Path, name: str) -> None:
    assert OVER_RDMA[name]().expected_bandwidth() == SLOW


@pytest.mark.parametrize("name", OVER_RDMA)
def test_given_none_then_it_expects_what_its_traits_say(here: Path, name: str) -> None:
    for device in RATES:
        write(here / "sys" / "class" / "infiniband" / device / "ports" / "1" / "state", "1: DOWN")
    assert OVER_RDMA[name]().expected_bandwidth() == OVER_RDMA[name].traits.bandwidth


def test_given_mooncake_is_told_a_device_or_to_use_tcp_then_it_counts_on_that(here: Path) -> None:
    assert MooncakeTransport(MooncakeOptions(devices="=mlx5_1")).expected_bandwidth() == FAST
    tcp = MooncakeTransport(MooncakeOptions(protocol="tcp"))
    assert tcp.expected_bandwidth() == MooncakeTransport.traits.bandwidth


def test_given_a_ucx_that_cannot_use_rdma_then_it_expects_what_its_traits_say(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt_transport_ucx.plugin.has_verbs", lambda: False)
    assert UcxTransport().expected_bandwidth() == UcxTransport.traits.bandwidth


def test_given_devices_that_a_setting_names_wrongly_then_an_update_does_not_count_on_them(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_IB_HCA", "^")
    assert bandwidths(["mooncake"], Config()) == {"mooncake": MooncakeTransport.traits.bandwidth}


# -- what an update makes of it -------------------------------------------------------------------------------------


def join(host: str, expected: Mapping[str, float]) -> Join:
    return Join(
        update="",
        role=Role.SINK,
        uid="",
        label=host,
        host=host,
        budget=0,
        transports=tuple(expected),
        unavailable={},
        routes=(),
        bandwidths=dict(expected),
    )


def test_given_a_member_that_expects_less_then_its_figure_counts_and_within_a_host_none_does() -> None:
    traits = NixlTransport.traits
    fast, slow, without = join("a", {"nixl": FAST}), join("b", {"nixl": SLOW}), join("c", {})

    assert between_hosts("nixl", traits, [fast, slow, without]).bandwidth == SLOW
    assert between_hosts("nixl", traits, [without, join("d", {"nixl": 0.0})]) == traits
    assert between_hosts("nixl", traits, [fast, fast]) == traits


@pytest.mark.parametrize("name", OVER_RDMA)
@pytest.mark.parametrize(("expected", "taken"), [(SLOW, True), (0.7e9, False)], ids=["RDMA", "TCP"])
def test_given_hosts_with_rdma_then_auto_takes_it_and_without_gloo(name: str, expected: float, taken: bool) -> None:
    traits = msgspec.structs.replace(OVER_RDMA[name].traits, bandwidth=expected)
    known = {"gloo": GlooTransport.traits, name: traits}
    made = plan(manifest([64 << 20] * 8), topology(["a"], ["b"], transports=tuple(known)), known, Settings())

    assert {route.transport for route in made.routes} == {name if taken else "gloo"}


@pytest.mark.skipif(not registry.available("nixl").ok, reason="NIXL is not installed")
@pytest.mark.parametrize("state", ["4: ACTIVE", "1: DOWN"])
def test_given_a_host_with_rdma_then_a_plan_for_several_such_hosts_takes_it(here: Path, state: str) -> None:
    for device in RATES:
        write(here / "sys" / "class" / "infiniband" / device / "ports" / "1" / "state", state)
    save_file({"w": torch.zeros(16 << 20)}, here / "model.safetensors")
    asked = ["plan", "--checkpoint", str(here), "--hosts", "2", "--sinks", "1", "--json"]
    said = CliRunner().invoke(app, asked, catch_exceptions=False)

    made = msgspec.json.decode(said.stdout_bytes, type=Plan)
    over_rdma = {route.transport for route in made.routes} & set(OVER_RDMA)
    assert bool(over_rdma) == (state == "4: ACTIVE")
