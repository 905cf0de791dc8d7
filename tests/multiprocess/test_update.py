"""Updates between real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_transport import Config, ParameterServer, UpdateAbortedError, ask_version
from tests.available import where_available
from tests.fleet import SinkSpec, SourceProcess, by_name, fleet, model, weights
from tests.patience import DEADLINE, PATIENT
from tests.support.forbidden_calls import forbid_reading_processes

TRANSPORTS = tuple(map(where_available, ("shm", "gloo", "nixl", "mooncake", "ucx")))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_two_serving_sinks_then_they_get_the_new_version_and_keep_their_storage(transport: str) -> None:
    """Given two sinks, when versions follow each other, then each holds exactly the last one and says so."""
    with fleet(SinkSpec(), SinkSpec()) as sinks, ParameterServer(Config.load(transport=transport, **PATIENT)) as server:
        addresses = [sink.address for sink in sinks]
        for seed in (2, 3, 4):
            server.register(f"v{seed}", tensors=weights(seed))
            report = server.update(f"v{seed}", addresses)
            assert report is not None
            assert report.plan.routes[0].transport == transport
            server.unregister(f"v{seed}")
            for sink in sinks:
                state = sink.state()
                assert state.version == f"v{seed}"
                assert state.holds(weights(seed))
                assert state.served == ""
                assert ask_version(sink.address, timeout=DEADLINE).version == f"v{seed}"


def test_given_a_second_update_then_it_uses_the_routes_and_the_memory_of_the_first() -> None:
    """Given an update, when the next version has the same shape, then pool, mapping and endpoints are used again."""
    with fleet(SinkSpec()) as sinks, ParameterServer(Config.load(transport="shm", **PATIENT)) as server:
        segments = []
        for seed in (2, 3):
            stored = server.register(f"v{seed}", tensors=weights(seed))
            segment = stored.buffers[0].segment
            assert segment is not None
            segments.append(segment.name)
            server.update(f"v{seed}", [sinks[0].address])
            server.unregister(f"v{seed}")
        assert segments[0] == segments[1]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_a_loader_that_takes_whole_tensors_then_it_gets_them_whole(transport: str) -> None:
    """Given a callback loader and buckets smaller than a tensor, then no tensor arrives in pieces."""
    settings = Config.load(transport=transport, bucket_bytes="64KiB", **PATIENT)
    with fleet(SinkSpec(loader=by_name), SinkSpec()) as sinks, ParameterServer(settings) as server:
        server.register("v2", tensors=weights(2))
        report = server.update("v2", [sink.address for sink in sinks])
        assert report is not None
        assert all(piece.tensor_offset == 0 for bucket in report.plan.buckets for piece in bucket.pieces)
        assert all(sink.state().holds(weights(2)) for sink in sinks)


def test_given_loaders_that_take_pieces_then_tensors_larger_than_a_slot_are_split() -> None:
    """Given slots smaller than a tensor, when all sinks copy by name, then it travels in pieces and arrives exactly."""
    settings = Config.load(transport="gloo", bucket_bytes="100KiB", ring_depth=2, **PATIENT)
    with fleet(SinkSpec(), SinkSpec()) as sinks, ParameterServer(settings) as server:
        server.register("v2", tensors=weights(2))
        report = server.update("v2", [sink.address for sink in sinks])
        assert report is not None
        assert any(piece.tensor_offset for bucket in report.plan.buckets for piece in bucket.pieces)
        assert all(sink.state().holds(weights(2)) for sink in sinks)


def test_given_less_memory_then_the_pipeline_is_shallower_and_the_plan_says_so() -> None:
    """Given a sink with memory for one slot, then the update runs serially and notes it."""
    poor = SinkSpec(settings={"memory_budget": "300KiB"})
    settings = Config.load(transport="gloo", bucket_bytes="256KiB", **PATIENT)
    with fleet(poor) as sinks, ParameterServer(settings) as server:
        server.register("v2", tensors=weights(2))
        report = server.update("v2", [sinks[0].address])
        assert report is not None
        assert any("one slot" in note for note in report.plan.notes)
        assert sinks[0].state().holds(weights(2))


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_weights_in_private_memory_then_they_are_filled_into_slots_where_the_transport_needs_it(
    transport: str,
) -> None:
    """Given a version outside shared memory, when shm carries it, then it is filled through a ring of shared slots."""
    settings = Config.load(transport=transport, pool="private", bucket_bytes="256KiB", **PATIENT)
    with fleet(SinkSpec(), SinkSpec(loader=by_name)) as sinks, ParameterServer(settings) as server:
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights(seed))
            report = server.update(f"v{seed}", [sink.address for sink in sinks])
            assert report is not None
            assert (report.plan.buckets[0].fill_slot >= 0) == (transport == "shm")
            assert all(sink.state().holds(weights(seed)) for sink in sinks)


def test_given_a_relay_then_it_passes_on_what_it_receives() -> None:
    """Given sinks on two hosts, then gloo goes to one sink of the far host and shm on from there, in one plan."""
    far = {"host": "far"}
    specs = [
        SinkSpec(settings={"host": "near"}),
        SinkSpec(settings=far),
        SinkSpec(settings=far),
        SinkSpec(settings=far),
    ]
    settings = Config.load(transport="auto", host="near", bucket_bytes="300KiB", ring_depth=2, **PATIENT)
    with fleet(*specs) as sinks, ParameterServer(settings) as server:
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights(seed))
            report = server.update(f"v{seed}", [sink.address for sink in sinks])
            assert report is not None
            assert {route.transport for route in report.plan.routes} == {"gloo", "shm"}
            assert len(report.plan.hops) == 2
            assert all(sink.state().holds(weights(seed)) for sink in sinks)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_two_sources_then_they_share_a_checkpoint(transport: str) -> None:
    """Given two source ranks with half the tensors each, then every sink gets both halves."""
    with fleet(SinkSpec(), SinkSpec()) as sinks:
        addresses = [sink.address for sink in sinks]
        coordinator = addresses[0] + "-coordinator"
        settings = {"transport": transport, "coordinator": coordinator, "bucket_bytes": "300KiB"}
        sources = [SourceProcess(addresses, settings=settings, rank=rank, world_size=2) for rank in (0, 1)]
        assert [source.outcome() for source in sources] == ["", ""]
        assert all(sink.state().holds(weights(2)) for sink in sinks)


def test_given_sources_with_sinks_beside_them_then_they_pass_on_to_those() -> None:
    """Given a source on each of two hosts, then gloo goes from source to source, and no sink needs a slot."""
    specs = [SinkSpec(settings={"host": host, "memory_budget": 1}) for host in ("near", "far", "far")]
    with fleet(*specs) as sinks:
        addresses = [sink.address for sink in sinks]
        settings = {"transport": "gloo+shm", "coordinator": addresses[0] + "-coordinator", "bucket_bytes": "300KiB"}
        sources = [
            SourceProcess(addresses, settings={**settings, "host": host}, rank=rank, world_size=2)
            for rank, host in enumerate(("near", "far"))
        ]
        assert [source.outcome() for source in sources] == ["", ""]
        assert all(sink.state().holds(weights(2)) for sink in sinks)


def test_given_a_sharded_directory_then_it_is_served_over_tcp(tmp_path: Path) -> None:
    """Given safetensors files and a sink at a TCP address, then the update works as over a local socket."""
    tensors = weights(2, dtype=torch.bfloat16)
    names = list(tensors)
    save_file({name: tensors[name] for name in names[:5]}, tmp_path / "a.safetensors")
    save_file({name: tensors[name] for name in names[5:]}, tmp_path / "b.safetensors")
    spec = SinkSpec(model={"dtype": torch.bfloat16}, address="tcp://127.0.0.1:0", settings={"insecure": True})
    with fleet(spec) as sinks, ParameterServer(Config.load(**PATIENT, insecure=True)) as server:
        assert sinks[0].address.startswith("tcp://127.0.0.1:")
        server.register("v2", directory=tmp_path)
        server.update("v2", [sinks[0].address])
        assert sinks[0].state().holds(tensors)


def test_given_sinks_at_a_unix_socket_and_at_tcp_then_both_are_updated_if_both_may_talk_there(tmp_path: Path) -> None:
    """One at TCP takes the coordinator there for all; the other one's refusal says what helps, and each cure does."""
    at_tcp = SinkSpec(address="tcp://127.0.0.1:0", settings={"insecure": True})
    trusting = Config.load(**PATIENT, insecure=True)
    with fleet(SinkSpec(), at_tcp) as sinks, ParameterServer(trusting) as server:
        server.register("v2", tensors=weights(2))
        with pytest.raises(UpdateAbortedError, match="same secret_file, sinks at ipc:// addresses too") as refused:
            server.update("v2", [sink.address for sink in sinks])
        assert "insecure = true in the settings of all of them" in str(refused.value)
        assert [sink.state().version for sink in sinks] == ["v1", "v1"]
    settled = Config.load(**PATIENT, insecure=True, coordinator=f"ipc://{tmp_path}/trainer")
    for asked, config in ((SinkSpec(settings={"insecure": True}), trusting), (SinkSpec(), settled)):
        with fleet(asked, at_tcp) as sinks, ParameterServer(config) as server:
            server.register("v2", tensors=weights(2))
            server.update("v2", [sink.address for sink in sinks])
            assert all(sink.state().holds(weights(2)) for sink in sinks)


def test_given_models_that_hold_the_same_after_an_update_then_they_compute_the_same() -> None:
    """The fleet's model is a real one: equal weights give equal outputs (a guard for this file's own helpers)."""
    inputs = torch.randn(2, 256)
    assert torch.equal(model(5)(inputs), model(5)(inputs))
    assert not torch.equal(model(5)(inputs), model(6)(inputs))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_lent_tensors_then_they_are_gathered_bucket_by_bucket(transport: str) -> None:
    """Given weights that are lent and not registered, when they are sent in small slots, then they arrive exactly.

    A sink that may not read the memory of other processes takes them from slots over any transport.
    """
    settings = Config.load(transport=transport, bucket_bytes="100KiB", ring_depth=2, **PATIENT)
    specs = [SinkSpec(loader=loader, prepare=forbid_reading_processes) for loader in (None, by_name)]
    with fleet(*specs) as sinks, ParameterServer(settings) as server:
        for seed in (2, 3):
            server.lend(f"v{seed}", weights(seed))
            report = server.update(f"v{seed}", [sink.address for sink in sinks])
            assert report is not None
            assert all(bucket.fill_slot >= 0 for bucket in report.plan.buckets)
            assert all(sink.state().holds(weights(seed)) for sink in sinks)
