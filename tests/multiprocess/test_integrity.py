"""A transport that gives wrong bytes never makes an update that succeeds, whatever says that they have come."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ckpt_transport import Config, Joiner, ParameterServer
from ckpt_transport.errors import TaintedError
from tests.corrupting import KINDS, Wrong, make_site
from tests.experts import loaded, loader, rank_of, weights_of
from tests.fleet import HolderSpec, SinkSpec, by_name, fleet, holders, weights
from tests.patience import PATIENT
from tests.site import READ, SOCKETS, use

SMALL = {"bucket_bytes": "64KiB", "ring_depth": 2}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    made = make_site(tmp_path / "site")
    monkeypatch.syspath_prepend(made)
    use(made)
    return made


def settings(transport: str, **others: Any) -> Config:
    return Config.load(transport=transport, **{**SMALL, **PATIENT, **others})


@pytest.mark.parametrize(
    ("wrong", "transport"),
    [
        (Wrong.FLIP, "shm"),
        *((wrong, "gloo") for wrong in Wrong),
        (Wrong.SWAP, READ),
        (Wrong.SHORT, SOCKETS),
    ],
)
def test_given_wrong_bytes_when_a_fleet_is_updated_then_the_update_fails_and_says_where(
    site: str, wrong: Wrong, transport: str
) -> None:
    """Given two sinks, when they get wrong bytes, then who was given some is tainted, and a good transport mends it."""
    with fleet(SinkSpec(site=site), SinkSpec(site=site, loader=by_name)) as sinks:
        addresses = [sink.address for sink in sinks]
        with ParameterServer(settings(f"{wrong}_{transport}")) as server:
            server.register("v2", tensors=weights(2))
            with pytest.raises(TaintedError) as failure:
                server.update("v2", addresses)
        said = str(failure.value)
        assert re.search(r"sink \d got bytes of \d\.(weight|bias)", said)
        assert f"by '{wrong}_{transport}' from rank 0" in said
        assert failure.value.sinks
        for sink in sinks:
            state = sink.wait_until(lambda state: bool(state.tainted) or state.holds(weights(1)))
            assert state.version == "v1"
        with ParameterServer(settings("gloo")) as server:
            server.register("v3", tensors=weights(3))
            server.update("v3", addresses)
        assert all(sink.state().holds(weights(3)) for sink in sinks)


@pytest.mark.parametrize("relay", ["flip_gloo+shm", "gloo+flip_shm"])
def test_given_a_relay_when_one_of_its_hops_gives_wrong_bytes_then_the_way_is_named(site: str, relay: str) -> None:
    specs = [SinkSpec(site=site, settings={"host": "elsewhere"}) for _ in range(2)]
    with fleet(*specs) as sinks, ParameterServer(settings(relay, host="here")) as server:
        server.register("v2", tensors=weights(2))
        with pytest.raises(TaintedError, match=f"by '{relay.split('+')[0]}' from rank 0 to rank"):
            server.update("v2", [sink.address for sink in sinks])
        for sink in sinks:
            sink.wait_until(lambda state: bool(state.tainted) or state.holds(weights(1)))


@pytest.mark.parametrize("transport", ["flip_gloo", f"swap_{READ}"])
def test_given_wrong_bytes_when_engines_join_then_what_was_wrong_does_not_count_as_had(
    site: str, tmp_path: Path, transport: str
) -> None:
    """Given a route that spoils some transfers, when rounds repeat them, then what counts in the end is right."""
    with (
        fleet(SinkSpec(site=site)) as (sink,),
        holders(HolderSpec(site=site)) as (holder,),
    ):
        joiner = Joiner([holder.save(tmp_path / "metas.json")], settings(transport))
        joiner.update("v2", [sink.address])
        assert sink.state().version == "v2"
        assert sink.state().holds(weights(2))


def test_given_shares_when_parts_of_tensors_come_wrong_then_the_update_fails(site: str) -> None:
    ranks = [
        SinkSpec(make=rank_of, model={"rank": rank, "size": 2}, loader=loader, engine="engine", site=site)
        for rank in range(2)
    ]
    with fleet(*ranks) as sinks:
        addresses = [sink.address for sink in sinks]
        with ParameterServer(settings("gloo", bucket_bytes="300KiB")) as server:
            server.register("v2", tensors=weights_of(2))
            server.update("v2", addresses)
            server.register("v3", tensors=weights_of(3))
            report = server.update("v3", addresses)
            assert report is not None
            assert report.plan.moves_shares
            assert all(sink.state().holds(loaded(3, rank, 2)) for rank, sink in enumerate(sinks))
        with ParameterServer(settings("flip_gloo", bucket_bytes="300KiB")) as server:
            server.register("v4", tensors=weights_of(4))
            with pytest.raises(TaintedError, match="bytes of experts"):
                server.update("v4", addresses)


def test_given_memory_that_changes_after_its_digests_were_made_then_the_update_fails() -> None:
    """Given a version in shared memory, when somebody writes to it between two updates, then the second fails."""
    with fleet(SinkSpec()) as (sink,), ParameterServer(settings("shm")) as server:
        stored = server.register("v2", tensors=weights(2))
        server.update("v2", [sink.address])
        stored.buffers[0].tensor[70_000] ^= 1
        with pytest.raises(TaintedError, match="were changed during the update"):
            server.update("v2", [sink.address])
        server.unregister("v2")
        server.register("v3", tensors=weights(3))
        server.update("v3", [sink.address])
        assert sink.state().holds(weights(3))


def test_given_integrity_never_then_nobody_compares(site: str) -> None:
    with (
        fleet(SinkSpec(site=site)) as (sink,),
        ParameterServer(settings("flip_shm", integrity="never")) as server,
    ):
        server.register("v2", tensors=weights(2))
        server.update("v2", [sink.address])
        assert sink.state().version == "v2"
        assert not sink.state().holds(weights(2))


def test_given_the_transports_of_this_file_then_each_is_what_it_says() -> None:
    assert all(kind.name == name for name, kind in KINDS.items())
