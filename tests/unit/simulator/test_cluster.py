"""Cluster files and model files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_transport.errors import ConfigError
from ckpt_transport.simulator import Model, cluster_of, included, manifest_of, model_of, shares_of, world_of
from tests.unit.simulator.small import cluster


def test_given_the_library_then_four_clusters_come_with_it() -> None:
    assert included() == ["16xH20", "256xH20", "8xH200", "8xH800"]
    assert [cluster_of(name).hosts * cluster_of(name).gpus for name in included()] == [16, 256, 8, 8]
    assert all(cluster_of(name).assumed for name in included())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hosts = 2", ["missing required field `links`", "links, transports"]),
        ("hosts = 0\ntransports = []\nlinks = {nic = 1}", ["$.hosts", ">= 1"]),
        ("hosts = 1\ntransports = []\nlinks = {nic = -1}", ["$.links.nic", "> 0"]),
        ("hosts = 1\ntransports = []\nlinks = {nick = 1}", ["nick", "$.links"]),
        ("hosts = ", ["is not TOML"]),
    ],
)
def test_given_a_cluster_file_that_is_wrong_then_the_key_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        cluster_of(str(file))
    assert all(word in str(refused.value) for word in [str(file), *words])


def test_given_no_such_cluster_then_those_that_there_are_are_named() -> None:
    with pytest.raises(ConfigError, match="one of: 16xH20, 256xH20, 8xH200, 8xH800"):
        cluster_of("9xH900")


def test_given_a_model_file_without_a_table_then_it_says_so(tmp_path: Path) -> None:
    file = tmp_path / "model.toml"
    file.write_text("layers = 2")
    with pytest.raises(ConfigError, match=r"no table \[model\]"):
        model_of(file)


def test_given_a_mixture_then_engines_of_two_ranks_need_half_of_its_experts_each() -> None:
    specs = list(Model(layers=2, hidden=256, expert_hidden=128, experts=4, vocabulary=512).specs())
    first, second = shares_of(specs, 1, 2)
    experts = [{name for name, _, _ in share.ranges if ".experts." in name} for share in (first, second)]
    assert experts[0].isdisjoint(experts[1])
    assert experts[0] | experts[1] == {spec.name for spec in specs if ".experts." in spec.name}
    assert {name for name, _, _ in first.ranges} - experts[0] == {name for name, _, _ in second.ranges} - experts[1]


def test_given_tensor_parallel_ranks_then_each_needs_its_rows_and_all_of_what_is_cut_by_columns() -> None:
    specs = {spec.name: spec for spec in Model(layers=1, hidden=256, expert_hidden=128, vocabulary=512).specs()}
    shares = [{name: (start, nbytes) for name, start, nbytes in s.ranges} for s in shares_of([*specs.values()], 4, 1)]
    rows, columns = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.o_proj.weight"
    part = specs[rows].nbytes // 4
    assert [share[rows] for share in shares] == [(rank * part, part) for rank in range(4)]
    assert all(share[columns] == (0, specs[columns].nbytes) for share in shares)


def test_given_fewer_sources_than_hosts_then_they_are_on_different_hosts_and_hold_everything() -> None:
    world = world_of(cluster(8), 4)
    assert [host for host, _ in world.places[:4]] == [0, 2, 4, 6]
    model = Model(layers=4, hidden=256, expert_hidden=256, vocabulary=1024)
    manifest = manifest_of(world, model.files())
    assert manifest.owners == (0, 1, 2, 3)
    assert manifest.nbytes == sum(spec.nbytes for spec in model.specs())


def test_given_more_sources_than_gpus_then_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="9 sources do not fit"):
        world_of(cluster_of("8xH800"), 9)
