"""Given a host's sysfs, the plugin for Mooncake finds the RDMA devices that are meant, or near."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.errors import ConfigError, RegistrationError
from ckpt_transport.transports.rdma.devices import (
    Locality,
    distance,
    locality_of_cpus,
    locality_of_pci,
    nearest,
    rdma_devices,
)
from ckpt_transport_mooncake.links import Offer, agree
from ckpt_transport_mooncake.patterns import select

GPU = "0000:c1:00.0"
BRIDGES = {
    "mlx5_0": "pci0000:00/0000:00:01.0/0000:01:00.0",
    "mlx5_1": "pci0000:80/0000:80:01.0/0000:81:00.0",
    "mlx5_2": "pci0000:c0/0000:c0:01.0/0000:c2:00.0",
    "mlx5_3": "pci0000:c0/0000:c0:07.0/0000:c3:00.0",
}
NODES = {"mlx5_0": 0, "mlx5_1": 1, "mlx5_2": 1, "mlx5_3": 1}
PORTS = {"mlx5_0": [1, 2], "mlx5_1": [1], "mlx5_2": [1], "mlx5_10": [1], "bnxt_0": [1]}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def add_pci(sys: Path, bridges: str, node: int) -> Path:
    device = sys / "devices" / bridges
    write(device / "numa_node", str(node))
    link = sys / "bus" / "pci" / "devices" / device.name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(device)
    return device


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Two NUMA nodes with four RDMA devices and a GPU that shares a switch with one of them."""
    for name, bridges in BRIDGES.items():
        folder = tmp_path / "class" / "infiniband" / name
        write(folder / "ports" / "1" / "state", "4: ACTIVE")
        (folder / "device").symlink_to(add_pci(tmp_path, bridges, NODES[name]))
    add_pci(tmp_path, f"pci0000:c0/0000:c0:01.0/{GPU}", 1)
    for node, cpus in ((0, "0-3,8-11"), (1, "4-7,12-15")):
        write(tmp_path / "devices" / "system" / "node" / f"node{node}" / "cpulist", cpus)
    return tmp_path


def names(devices: object) -> list[str]:
    return [device.name for device in devices]  # type: ignore[attr-defined]


# -- what there is --------------------------------------------------------------------------------------------------


def test_given_a_host_without_rdma_then_it_has_no_devices(tmp_path: Path) -> None:
    assert rdma_devices(tmp_path) == ()
    assert nearest((), Locality(0)) == ()


def test_given_devices_whose_ports_are_down_then_they_are_not_there(host: Path) -> None:
    write(host / "class" / "infiniband" / "mlx5_1" / "ports" / "1" / "state", "1: DOWN")
    write(host / "class" / "infiniband" / "mlx5_2" / "ports" / "1" / "state", "1: DOWN")
    write(host / "class" / "infiniband" / "mlx5_2" / "ports" / "2" / "state", "4: ACTIVE")

    found = {device.name: device.ports for device in rdma_devices(host)}

    assert found == {"mlx5_0": (1,), "mlx5_2": (2,), "mlx5_3": (1,)}


# -- what is near ---------------------------------------------------------------------------------------------------


def test_given_a_gpu_then_it_gets_the_device_below_its_own_switch(host: Path) -> None:
    assert names(nearest(rdma_devices(host), locality_of_pci(GPU.upper(), host))) == ["mlx5_2"]


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        (["mlx5_2"], ["mlx5_3"]),
        (["mlx5_2", "mlx5_3"], ["mlx5_1"]),
        (["mlx5_1", "mlx5_2", "mlx5_3"], ["mlx5_0"]),
    ],
    ids=["root complex", "NUMA node", "anywhere"],
)
def test_given_a_gpu_without_such_a_device_then_it_gets_the_next_nearest(
    host: Path, gone: list[str], left: list[str]
) -> None:
    devices = [device for device in rdma_devices(host) if device.name not in gone]

    assert names(nearest(devices, locality_of_pci(GPU, host))) == left


def test_given_a_rank_bound_to_a_numa_node_then_it_gets_all_devices_of_that_node(host: Path) -> None:
    assert names(nearest(rdma_devices(host), locality_of_cpus([5, 6, 12], host))) == ["mlx5_1", "mlx5_2", "mlx5_3"]
    assert names(nearest(rdma_devices(host), locality_of_cpus(range(4), host))) == ["mlx5_0"]


def test_given_a_rank_that_may_run_anywhere_then_it_gets_all_devices(host: Path) -> None:
    assert locality_of_cpus(range(16), host) == Locality()
    assert names(nearest(rdma_devices(host), Locality())) == list(BRIDGES)


def test_given_a_gpu_that_sysfs_does_not_show_then_it_gets_all_devices(host: Path) -> None:
    assert names(nearest(rdma_devices(host), locality_of_pci("0001:02:00.0", host))) == list(BRIDGES)


@given(st.data())
def test_given_two_devices_then_their_distance_is_the_same_both_ways_and_least_to_themselves(
    data: st.DataObject,
) -> None:
    places = st.builds(Locality, st.integers(-1, 2), st.lists(st.sampled_from("abc"), max_size=4).map(tuple))
    one, other = data.draw(places), data.draw(places)

    assert distance(one, other) == distance(other, one)
    assert distance(one, one) <= distance(one, other) or distance(one, one) == (3, 0)


# -- what is meant --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["mlx5_0", "mlx5_1", "mlx5_2", "mlx5_10", "bnxt_0"]),
        ("mlx5", ["mlx5_0", "mlx5_1", "mlx5_2", "mlx5_10"]),
        ("mlx5_1", ["mlx5_1", "mlx5_10"]),
        ("=mlx5_1", ["mlx5_1"]),
        (" =mlx5_2 , bnxt_0 ", ["mlx5_2", "bnxt_0"]),
        ("^mlx5_1", ["mlx5_0", "mlx5_2", "bnxt_0"]),
        ("^=mlx5_1,bnxt_0", ["mlx5_0", "mlx5_2", "mlx5_10"]),
        ("mlx5_0:2", ["mlx5_0"]),
        ("=mlx5_1:2", []),
        ("^mlx5_0:1", ["mlx5_0", "mlx5_1", "mlx5_2", "mlx5_10", "bnxt_0"]),
        ("^mlx5_0:1,mlx5_0:2", ["mlx5_1", "mlx5_2", "mlx5_10", "bnxt_0"]),
        ("none_such", []),
    ],
)
def test_given_a_pattern_then_it_means_what_nccl_means_by_it(pattern: str, expected: list[str]) -> None:
    assert list(select(pattern, PORTS)) == expected


@given(st.text("mlx5_0,:12 ", max_size=12))
def test_given_a_list_and_its_opposite_then_they_share_out_single_port_devices(entries: str) -> None:
    ports = {name: [1] for name in PORTS}
    try:
        chosen = select(f"={entries}", ports)
    except ConfigError:
        return
    left_out = select(f"^={entries}", ports)
    assert sorted(chosen + left_out) == sorted(ports)


@pytest.mark.parametrize("pattern", ["mlx5_0:x", "^", "=", "^=,", "mlx5_0:"])
def test_given_a_pattern_that_means_nothing_then_it_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"write|names no"):
        select(pattern, PORTS)


# -- what members agree on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offers", "expected"),
    [
        ({0: Offer("auto", ("a",)), 1: Offer("auto", ("b",))}, "rdma"),
        ({0: Offer("auto", ("a",)), 1: Offer("auto")}, "tcp"),
        ({0: Offer("tcp"), 1: Offer("auto", ("b",))}, "tcp"),
        ({0: Offer("rdma", ("a",)), 1: Offer("auto", ("b",))}, "rdma"),
    ],
)
def test_given_hosts_that_all_can_and_none_that_objects_then_rdma_is_used(
    offers: dict[int, Offer], expected: str
) -> None:
    assert agree(offers) == expected


def contradiction() -> dict[int, Offer]:
    return {0: Offer("rdma", ("a",)), 1: Offer("tcp")}


def no_device() -> dict[int, Offer]:
    return {0: Offer("rdma", ("a",)), 1: Offer("auto")}


@pytest.mark.parametrize(
    ("offers", "words"),
    [(contradiction, "rank 0 is set to 'rdma' and rank 1 to 'tcp'"), (no_device, r"ranks \[1\] have no RDMA device")],
)
def test_given_what_cannot_be_agreed_on_then_it_is_an_error_with_a_cure(
    offers: Callable[[], dict[int, Offer]], words: str
) -> None:
    with pytest.raises(RegistrationError, match=words) as caught:
        agree(offers())
    assert "set 'protocol'" in str(caught.value)
    assert "'protocol' to 'tcp'" in str(caught.value) or "'auto'" in str(caught.value)
