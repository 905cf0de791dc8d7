"""Given weights on a trainer's GPU that other processes can map, then sinks read them where they lie."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer, StoredVersion
from ckpt_transport.checkpoint import Store
from ckpt_transport.errors import UpdateAbortedError, UpdateError
from ckpt_transport.memory import MemoryKind, let_read
from ckpt_transport.memory.exported import allocations_of, why_not_exported
from ckpt_transport.planning import IN_PLACE, Plan
from ckpt_transport_cuda_ipc.memory import as_tensor
from tests.fleet import SinkSpec, SourceProcess, by_name, fleet, weights
from tests.gpu.test_update import GROWTH, used
from tests.injection import Fault
from tests.patience import SWIFT

WIDE: Mapping[str, Any] = {"width": 1024}
ON_GPU: Mapping[str, Any] = {**WIDE, "device": "cuda"}
SMALL = {"bucket_bytes": "1MiB", "ring_depth": 2}
SPARE = 1 << 20
"""Bytes that tables on the GPU may take."""
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def swift(**settings: Any) -> Config:
    return Config.load(**{**SWIFT, "heartbeat_timeout": 5.0, "transport": "cuda_ipc", **SMALL, **settings})


def read_in_place(plan: Plan) -> bool:
    return not plan.rings and all(bucket.fill_slot == bucket.slot == IN_PLACE for bucket in plan.buckets)


def register_as_loan(server: ParameterServer, version: str, tensors: dict[str, torch.Tensor]) -> StoredVersion:
    """What a trainer does that keeps its weights on its GPU."""
    return server.lend(version, {name: tensor.cuda() for name, tensor in tensors.items()})


def lends() -> None:
    """Have this process lend what it would register."""
    ParameterServer.register = register_as_loan  # type: ignore[method-assign, assignment]


def test_given_many_small_tensors_then_they_share_few_allocations_which_cover_them_all() -> None:
    tensors = [torch.zeros(1 + number * 100, dtype=torch.uint8, device="cuda") for number in range(300)]
    found = allocations_of(tensors)
    assert len(found) < len(tensors)
    assert all(
        any(each.address <= t.data_ptr() and t.data_ptr() + t.numel() <= each.address + each.nbytes for each in found)
        for t in tensors
    )
    assert why_not_exported(tensors) == ""


@pytest.mark.parametrize("loader", [None, by_name], ids=["in pieces", "whole"])
@pytest.mark.parametrize("sinks", [1, 2])
def test_given_lent_weights_on_the_gpu_of_the_sinks_then_nothing_is_copied_before_they_read_it(
    sinks: int, loader: Any
) -> None:
    """Given new tensors at each step, as an optimizer may make, then the memory of each is mapped and read."""
    with fleet(*[SinkSpec(ON_GPU, loader=loader)] * sinks) as running, ParameterServer(swift()) as server:
        for seed in (2, 3, 4):
            stored = server.lend(f"v{seed}", weights(seed, **ON_GPU))
            assert [extent.kind for extent in stored.extents] == [MemoryKind.EXPORTED]
            report = server.update(f"v{seed}", [sink.address for sink in running])
            assert report is not None
            assert read_in_place(report.plan)
            assert all(sink.state().holds(weights(seed, **WIDE)) for sink in running)
            server.unregister(f"v{seed}")


def test_given_odd_tensors_then_each_arrives_as_it_is() -> None:
    """Given views at odd addresses and tensors of one byte, then no kernel minds."""
    shape: dict[str, Any] = {"dtype": torch.float16, "width": 33}
    with fleet(SinkSpec({**shape, "device": "cuda"})) as (sink,), ParameterServer(swift()) as server:
        own = {}
        for name, tensor in weights(2, **shape).items():
            held = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype, device="cuda")
            own[name] = held[1:].view(tensor.shape).copy_(tensor)
        server.lend("v2", own)
        report = server.update("v2", [sink.address])
        assert report is not None
        assert read_in_place(report.plan)
        assert sink.state().holds(weights(2, **shape))


def test_given_an_owner_that_changes_what_it_has_lent_then_the_update_ends_before_a_byte_is_applied() -> None:
    with fleet(SinkSpec(ON_GPU)) as (sink,), ParameterServer(swift()) as server:
        own = weights(2, **ON_GPU)
        server.lend("v2", own)
        next(iter(own.values())).add_(1)
        with pytest.raises(UpdateAbortedError, match="was changed or freed by its owner"):
            server.update("v2", [sink.address])
        assert sink.state().tainted == ""
        server.lend("v3", weights(3, **ON_GPU))
        server.update("v3", [sink.address])
        assert sink.state().holds(weights(3, **WIDE))


def allocate(*, expandable: bool) -> None:
    """Have torch take new memory of GPUs in segments that grow, or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch have another name for it
        torch.cuda.memory._set_allocator_settings(f"expandable_segments:{expandable}")


def test_given_memory_of_segments_that_can_grow_then_it_is_handed_over_and_read_where_it_lies() -> None:
    with fleet(SinkSpec(ON_GPU)) as (sink,), ParameterServer(swift()) as server:
        allocate(expandable=True)
        try:
            torch.cuda.empty_cache()
            own = weights(2, **ON_GPU)
        finally:
            allocate(expandable=False)
        stored = server.lend("v2", own)
        assert [extent.kind for extent in stored.extents] == [MemoryKind.PAGED]
        report = server.update("v2", [sink.address])
        assert report is not None
        assert read_in_place(report.plan), report.plan.notes
        assert sink.state().holds(weights(2, **WIDE))


def test_given_a_trainer_that_lets_a_version_go_then_the_memory_of_its_tensors_is_free() -> None:
    with fleet(SinkSpec(ON_GPU)) as (sink,), ParameterServer(swift()) as server:
        before = torch.cuda.memory_allocated()
        own = weights(2, **ON_GPU)
        server.lend("v2", own)
        server.update("v2", [sink.address])
        server.unregister("v2")
        del own
        assert torch.cuda.memory_allocated() <= before + SPARE


def test_given_a_trainer_that_is_killed_while_it_is_read_then_the_sink_lives_and_says_so() -> None:
    with fleet(SinkSpec(ON_GPU, settings=SWIFT)) as (sink,):
        settings = {**SWIFT, "transport": "cuda_ipc", **SMALL}
        source = SourceProcess(
            [sink.address], settings=settings, shape={"width": 1024}, fault=Fault("sent", 2), prepare=lends
        )
        assert source.outcome() == "killed"
        with ParameterServer(swift()) as server:
            server.lend("v3", weights(3, **ON_GPU))
            server.update("v3", [sink.address])
            assert sink.state().holds(weights(3, **WIDE))


def test_given_two_trainers_then_each_serves_its_part_from_where_it_lies() -> None:
    with fleet(SinkSpec(ON_GPU)) as (sink,):
        settings = {**SWIFT, "transport": "cuda_ipc", **SMALL, "coordinator": sink.address + "-coordinator"}
        common: dict[str, Any] = {"settings": settings, "shape": {"width": 1024}, "world_size": 2, "prepare": lends}
        sources = [SourceProcess([sink.address], rank=0, **common), SourceProcess([], rank=1, **common)]
        assert [source.outcome() for source in sources] == ["", ""]
        assert sink.state().holds(weights(2, **WIDE))


def test_given_fifty_updates_of_new_tensors_then_no_memory_stays_mapped() -> None:
    with fleet(SinkSpec(ON_GPU)) as (sink,), ParameterServer(swift()) as server:

        def step(seed: int) -> None:
            server.lend("v", weights(seed, **ON_GPU))
            server.update("v", [sink.address])
            server.unregister("v")

        for seed in range(2, 7):
            step(seed)
        before = used()
        for seed in range(7, 57):
            step(seed)
        step(6)
        assert used() <= before + GROWTH
        assert sink.state().holds(weights(6, **WIDE))


def test_given_a_lender_and_an_engine_in_one_process_then_its_tensors_are_used_where_they_lie() -> None:
    from ckpt_transport_torch import attach
    from tests.fleet import model

    serving = attach(model(1, device="cuda"))
    with serving, ParameterServer(swift()) as server:
        server.lend("v2", weights(2, device="cuda"))
        server.update("v2", [serving.address])
        assert serving.version == "v2"


@two_gpus
@pytest.mark.parametrize("gpus", [("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")])
def test_given_an_engine_on_another_gpu_that_can_read_the_trainers_then_it_reads_there(gpus: tuple[str, str]) -> None:
    theirs, own = {**ON_GPU, "device": gpus[1]}, {**ON_GPU, "device": gpus[0]}
    with fleet(SinkSpec(theirs)) as (sink,), ParameterServer(swift()) as server:
        for seed in (2, 3):
            server.lend(f"v{seed}", weights(seed, **own))
            report = server.update(f"v{seed}", [sink.address])
            assert report is not None
            assert read_in_place(report.plan), report.plan.notes
            assert sink.state().holds(weights(seed, **WIDE))


@two_gpus
def test_given_memory_of_a_peer_then_a_tensor_of_it_counts_as_the_readers() -> None:
    """Then a copy runs on the device that reads, in the order of its stream."""
    theirs = torch.arange(100_000, device="cuda:1").view(torch.uint8)
    torch.cuda.synchronize(1)
    here = torch.device("cuda", 0)
    let_read(here, theirs.device)
    seen = as_tensor(theirs.data_ptr(), theirs.numel(), here)
    assert seen.device == here
    assert torch.equal(seen.clone().cpu(), theirs.cpu())


def test_given_a_sink_that_is_killed_while_it_reads_then_the_trainer_keeps_its_weights() -> None:
    own = weights(2, **ON_GPU)
    with fleet(SinkSpec(ON_GPU, fault=Fault("load", count=2))) as (sink,), ParameterServer(swift()) as server:
        server.lend("v2", own)
        with pytest.raises(UpdateError):
            server.update("v2", [sink.address])
    assert all(torch.equal(tensor, own[name]) for name, tensor in weights(2, **ON_GPU).items())


@two_gpus
def test_given_slots_on_another_gpu_than_the_tensors_then_each_is_filled_by_work_that_is_only_enqueued() -> None:
    """As for an engine that does not see the trainer's GPU: then slots are on its own."""
    here = torch.device("cuda", 1)
    with Store(pinned=False) as store:
        store.lend("v1", weights(2, **ON_GPU))
        extent = store.get("v1").extents[0]
        assert extent.only_enqueues(here)
        slot, expected = (torch.zeros(extent.nbytes, dtype=torch.uint8, device=device) for device in (here, "cuda:0"))
        for target in (slot, expected):
            with torch.cuda.device(target.device):
                extent.fill(target, 0)
                torch.cuda.synchronize()
        assert torch.equal(slot.cpu(), expected.cpu())
