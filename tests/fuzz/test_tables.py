"""Settings, rules, clusters, address files and what is kept between runs: whatever is in the file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from ckpt_transport import Config
from ckpt_transport.checkpoint.mapping import Mapping
from ckpt_transport.cli import served
from ckpt_transport.config import ENV_PREFIX
from ckpt_transport.events import UpdateEnded
from ckpt_transport.history import History, StageRow, Timeline
from ckpt_transport.rates.kept import _decoded
from ckpt_transport.service.address_file import AddressFile, HolderAddress, made_now
from ckpt_transport.simulator.cluster import INCLUDED, cluster_of
from tests.fuzz.damage import BURSTS, TEXTS, changed, damaged, odd
from tests.fuzz.fuzzing import fuzz

SETTINGS = b"""
transport = "gloo"
bucket_bytes = "64MiB"
sinks = ["ipc:///run/a", "tcp://127.0.0.1:1"]
heartbeat_interval = 0.5
insecure = false
[transports.mooncake]
protocol = "tcp"
"""
RULES = b"""
[[rules]]
rule = "strip"
prefix = "module."
[[rules]]
rule = "cast"
dtype = "BF16"
"""
CLUSTERS = [each.read_bytes() for each in INCLUDED.iterdir() if each.name.endswith(".toml")]


def as_toml(value: Any) -> str:
    """TOML of what msgspec can write; None is left out."""
    match value:
        case dict():
            pairs = (f'"{key}" = {as_toml(each)}' for key, each in value.items() if each is not None)
            return "{" + ", ".join(pairs) + "}"
        case list():
            return "[" + ", ".join(as_toml(each) for each in value if each is not None) + "]"
        case bool():
            return str(value).lower()
        case str():
            return msgspec.json.encode(value).decode()
    return repr(value)


def toml_of(samples: list[bytes]) -> st.SearchStrategy[bytes]:
    """TOML that is damaged, or says odd things, or is nested deep."""
    trees = [tomllib.loads(sample.decode()) for sample in samples]

    def write(tree: Any) -> bytes:
        lines = (f"{key} = {as_toml(value)}" for key, value in tree.items() if value is not None)
        return "\n".join(lines).encode()

    deep = st.sampled_from(BURSTS).map(lambda burst: b"sinks = " + burst)
    return st.one_of(damaged(samples), changed(trees).filter(lambda tree: isinstance(tree, dict)).map(write), deep)


@pytest.mark.parametrize(
    ("samples", "load"),
    [
        pytest.param([SETTINGS], lambda path: Config.load(path, {}), id="settings"),
        pytest.param([RULES], Mapping.load, id="rules"),
        pytest.param(CLUSTERS, lambda path: cluster_of(str(path)), id="clusters"),
    ],
)
def test_given_a_file_of_toml_that_says_anything_then_it_is_read_or_refused(
    tmp_path: Path, samples: list[bytes], load: Callable[[Path], object]
) -> None:
    path = tmp_path / "file.toml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        load(path)

    for sample in samples:
        read(sample)
    fuzz(toml_of(samples), read, examples=120)


def test_given_variables_that_say_anything_then_they_are_settings_or_refused() -> None:
    names = st.one_of(st.sampled_from([name.upper() for name in Config.__struct_fields__]), st.text(max_size=9))
    values = st.one_of(st.text(max_size=20), st.sampled_from(TEXTS), odd.map(str))
    fuzz(st.tuples(names, values), lambda made: Config.load(None, {ENV_PREFIX + made[0]: made[1]}), examples=120)


def json_of(sample: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(damaged([sample]), changed([msgspec.json.decode(sample)]).map(msgspec.json.encode))


def test_given_an_address_file_that_says_anything_then_it_is_read_or_refused(tmp_path: Path) -> None:
    path, config = tmp_path / "metas.json", Config()
    holders = [HolderAddress("tcp://127.0.0.1:1", "here"), HolderAddress("ipc:///run/a", "there")]
    made_now("v1", "0" * 32, 3, 99, holders).save(path, config)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        AddressFile.load(path, config)

    fuzz(json_of(path.read_bytes()), read, examples=120)


def test_given_what_was_kept_that_says_anything_then_it_is_read_or_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    record = served.record_path()
    record.parent.mkdir()
    kept = served.FleetRecord("vllm", "v1", "/a", {"a": (1, 2)}, ("http://a",))

    def read(data: bytes) -> None:
        record.write_bytes(data)
        served.recall()
        _decoded(data)

    fuzz(json_of(msgspec.json.encode(kept)), read, examples=120)
    fuzz(st.sampled_from(BURSTS), read)


def test_given_a_history_that_says_anything_then_what_can_be_read_of_it_is(tmp_path: Path) -> None:
    path = tmp_path / "history"
    ended = UpdateEnded(at=1.0, update="u", kind="update", version="v1", outcome="committed", seconds=2.0)
    timeline = Timeline(at=1.0, update="u", seconds=2.0, rows=(StageRow("a", "fill", ((0.0, 1.0),)),))
    lines = [msgspec.json.encode(ended), msgspec.json.encode(timeline)]

    def read(data: bytes) -> None:
        path.write_bytes(data + b"\n")
        History(path).updates()

    fuzz(st.one_of(*(json_of(line) for line in lines), damaged([b"\n".join(lines)])), read, examples=120)
    fuzz(st.sampled_from(BURSTS), read)
