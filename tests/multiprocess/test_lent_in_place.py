"""A trainer on CPUs lends its weights: sinks of its host read them where they lie, to where they serve them."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection

import pytest
import torch

from ckpt_transport import Config, LoadedBucket, ParameterServer, Report, TensorShard, UpdateError, rules
from ckpt_transport import Mapping as Rules
from ckpt_transport.checkpoint import Tensors
from ckpt_transport_torch import Loader
from ckpt_transport_torch.loader_engine import LoaderEngine
from tests.fleet import SinkProcess, SinkSpec, by_name, context, fleet, model, weights
from tests.halves import loader, part_of, rank_of, weights_of
from tests.patience import PATIENT
from tests.support.forbidden_calls import forbid_reading_processes

CONFIG = Config.load(transport="shm", **PATIENT)
ODD = ((1,), (2, 1), (3, 5), (257,), (70_001,), (0,), (1100, 2100))
TYPES = (torch.bfloat16, torch.uint8, torch.float32, torch.float64)


def odd_model(seed: int) -> torch.nn.Module:
    """Tensors of one byte to nine megabytes, of every size of element."""
    module = model(seed, layers=1)
    for name, tensor in odd_tensors(seed).items():
        module.register_buffer(name, tensor)
    return module


def odd_weights(seed: int) -> dict[str, torch.Tensor]:
    return {**weights(seed, layers=1), **odd_tensors(seed)}


def odd_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{number}_{kind}".replace(".", "_"): torch.randint(0, 120, shape, generator=generator).to(kind)
        for number, shape in enumerate(ODD)
        for kind in TYPES
    }


def passes_through_slots(report: Report) -> list[str]:
    """Why, as the plan says it; nothing where tensors were read where they lay."""
    made = report.plan
    assert made is not None
    notes = [note for note in made.notes if note.startswith("the tensors of source 0 pass through slots: ")]
    assert all(map(made.lies_apart, made.buckets)) == (not notes)
    assert bool(made.rings) == bool(notes)
    return notes


def publish(server: ParameterServer, version: str, tensors: Tensors, sinks: Sequence[SinkProcess]) -> Report:
    report = server.publish(version, tensors, [sink.address for sink in sinks])
    assert report is not None
    return report


@pytest.mark.parametrize("commit", ["in_place", "staged"])
def test_given_tensors_of_any_size_then_each_step_is_read_where_it_lies_bit_by_bit(commit: str) -> None:
    """From the second step on they lie in huge pages, as far as they fill some."""
    trained = odd_weights(2)
    config = Config.load(transport="shm", commit=commit, **PATIENT)
    with fleet(SinkSpec(make=odd_model), SinkSpec(make=odd_model)) as sinks, ParameterServer(config) as server:
        for step in (3, 4, 5):
            for name, tensor in odd_weights(step).items():
                trained[name].copy_(tensor)
            assert passes_through_slots(publish(server, f"step-{step}", trained, sinks)) == []
            for sink in sinks:
                state = sink.state()
                assert (state.version, state.tainted) == (f"step-{step}", "")
                assert state.holds(trained)


def test_given_tensors_that_move_between_two_steps_then_they_are_found_again() -> None:
    with fleet(SinkSpec()) as sinks, ParameterServer(CONFIG) as server:
        for step in (2, 3):
            assert passes_through_slots(publish(server, f"step-{step}", weights(step), sinks)) == []
            assert sinks[0].state().holds(weights(step))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (
            SinkSpec(prepare=forbid_reading_processes),
            "a filter of system calls or a security module may forbid process_vm_readv",
        ),
        (SinkSpec(loader=by_name), "its loader was not replayed yet"),
    ],
    ids=["forbidden", "loader"],
)
def test_given_one_sink_that_cannot_read_them_there_then_they_pass_through_slots_and_it_is_said_why(
    spec: SinkSpec, why: str
) -> None:
    with fleet(SinkSpec(), spec) as sinks, ParameterServer(CONFIG) as server:
        (note,) = passes_through_slots(publish(server, "step-2", weights(2), sinks))
        assert why in note
        assert all(sink.state().holds(weights(2)) for sink in sinks)


def halves(tensor: torch.Tensor) -> list[TensorShard]:
    """The rows of a matrix in two parts that lie apart."""
    first, second = (part.clone() for part in tensor.chunk(2))
    return [TensorShard(first, tensor.shape, (0, 0)), TensorShard(second, tensor.shape, (len(first), 0))]


def run(tensor: torch.Tensor) -> list[TensorShard]:
    """A matrix in two runs that meet within a row, as ZeRO-3 cuts it."""
    first, second = tensor.flatten().tensor_split([3 * tensor.shape[1] + 5])
    return [*TensorShard.of_run(first, tensor.shape, 0), *TensorShard.of_run(second, tensor.shape, len(first))]


def columns(tensor: torch.Tensor) -> list[TensorShard]:
    """The columns of a matrix in two parts, of which each is a short range in every row."""
    first, second = (part.contiguous() for part in tensor.chunk(2, dim=1))
    return [TensorShard(first, tensor.shape, (0, 0)), TensorShard(second, tensor.shape, (0, first.shape[1]))]


@pytest.mark.parametrize(
    ("cut", "sinks", "why"),
    [
        (halves, [SinkSpec(), SinkSpec(loader=by_name)], "'0.weight' is joined of tensors that lie apart"),
        (run, [SinkSpec(), SinkSpec(loader=by_name)], "'0.weight' is joined of tensors that lie apart"),
    ],
)
def test_given_matrices_that_are_joined_then_they_are_gathered_and_it_is_said_why(
    cut: Callable[[torch.Tensor], list[TensorShard]], sinks: Sequence[SinkSpec], why: str
) -> None:
    with fleet(*sinks) as started, ParameterServer(CONFIG) as server:
        for step in (2, 3):
            trained = weights(step)
            given = {name: cut(tensor) if tensor.dim() == 2 else tensor for name, tensor in trained.items()}
            (note,) = passes_through_slots(publish(server, f"step-{step}", given, started))
            assert note.endswith(why)
            assert all(sink.state().holds(trained) for sink in started)


def test_given_matrices_in_columns_then_these_are_read_where_they_lie() -> None:
    with fleet(SinkSpec()) as started, ParameterServer(CONFIG) as server:
        for step in (2, 3):
            trained = weights(step)
            given = {name: columns(tensor) if tensor.dim() == 2 else tensor for name, tensor in trained.items()}
            made = publish(server, f"step-{step}", given, started)
            assert not passes_through_slots(made)
            assert all(sink.state().holds(trained) for sink in started)


def test_given_tensors_that_a_rule_joins_then_each_step_of_them_is_served_as_one() -> None:
    mapping = Rules.of(rules.Fuse(("upper", "lower"), "0.weight"))
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        for step in (2, 3):
            trained = weights(step)
            given = dict(trained)
            given["upper"], given["lower"] = (part.clone() for part in given.pop("0.weight").tensor_split([100]))
            report = server.publish(f"step-{step}", given, [sink.address], mapping=mapping)
            assert report is not None
            assert passes_through_slots(report)
            assert sink.state().holds(trained)


class Fused(torch.nn.Module):
    """What a loader puts together of tensors, and makes of others."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        del seed
        self.fused = torch.nn.Parameter(torch.zeros(2048, 1100, dtype=torch.bfloat16), requires_grad=False)
        self.columns = torch.nn.Parameter(torch.zeros(1100, 700, dtype=torch.bfloat16), requires_grad=False)
        self.turned = torch.nn.Parameter(torch.zeros(300, 500), requires_grad=False)
        self.wider = torch.nn.Parameter(torch.zeros(70_001), requires_grad=False)
        self.computed = torch.nn.Parameter(torch.zeros(257), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def put(self, name: str, tensor: torch.Tensor) -> None:
        if name in "qk":
            self.fused.data.narrow(0, "qk".index(name) * 1024, 1024).copy_(tensor)
        elif name == "columns":
            self.columns.data.copy_(tensor[:, 700:])
        elif name == "turned":
            self.turned.data.copy_(tensor.t())
        elif name == "wider":
            self.wider.data.copy_(tensor)
        else:
            self.computed.data.copy_(torch.exp(tensor.float()))


def loader_of(module: Fused) -> Loader:
    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            module.put(name, tensor)

    return load


def unfused(seed: int) -> dict[str, torch.Tensor]:
    """A checkpoint of such a module."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "q": (1024, 1100),
        "k": (1024, 1100),
        "columns": (1100, 1400),
        "turned": (500, 300),
    }
    shapes.update(wider=(70_001,), exponent=(257,))
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: tensor if name == "turned" else tensor.bfloat16() for name, tensor in made.items()}


def loaded(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What its loader makes of one."""
    module = Fused(0)
    loader_of(module)(tensors.items())
    return dict(module.state_dict())


@pytest.mark.parametrize("commit", ["in_place", "staged"])
@pytest.mark.parametrize("integrity", ["always", "never"])
def test_given_a_replayed_loader_then_bytes_are_read_to_where_it_puts_them(commit: str, integrity: str) -> None:
    """What it casts, turns or computes is made of what is read beside that."""
    trained = unfused(2)
    settings = {"transport": "shm", "integrity": integrity, "bucket_bytes": "2MiB", **PATIENT}
    with fleet(SinkSpec(make=Fused, loader=loader_of)) as (sink,), ParameterServer(Config.load(**settings)) as first:
        (note,) = passes_through_slots(publish(first, "step-2", trained, [sink]))
        assert "its loader was not replayed yet" in note
        with ParameterServer(Config.load(commit=commit, **settings)) as server:
            for step in (3, 4, 5):
                for name, tensor in unfused(step).items():
                    trained[name].copy_(tensor)
                report = publish(server, f"step-{step}", trained, [sink])
                assert passes_through_slots(report) == []
                assert report.apply_summary[1].startswith("replayed in")
                assert sink.state().holds(loaded(trained))


def process_in_place() -> None:
    """From now on engines make something else of what has landed, where it lies, as layers of vLLM do."""
    landed = LoaderEngine.landed

    def processed(engine: LoaderEngine, pieces: LoadedBucket) -> None:
        landed(engine, pieces)
        engine._module.get_parameter("fused").data.neg_()

    setattr(LoaderEngine, "landed", processed)  # noqa: B010


def test_given_an_engine_that_processes_what_has_landed_then_digests_are_of_what_came() -> None:
    trained = unfused(2)
    spec = SinkSpec(make=Fused, loader=loader_of, prepare=process_in_place)
    with fleet(spec) as (sink,), ParameterServer(Config.load(transport="shm", commit="in_place", **PATIENT)) as server:
        publish(server, "step-2", trained, [sink])
        for step in (3, 4):
            for name, tensor in unfused(step).items():
                trained[name].copy_(tensor)
            assert passes_through_slots(publish(server, f"step-{step}", trained, [sink])) == []
            expected = loaded(trained)
            expected["fused"] = -expected["fused"]
            assert sink.state().holds(expected)


@pytest.mark.parametrize("commit", ["in_place", "staged"])
def test_given_a_page_that_is_gone_from_a_loan_then_a_replayed_engine_serves_no_mix(commit: str) -> None:
    settings = {"transport": "shm", "integrity": "never", "bucket_bytes": "2MiB", **PATIENT}
    with fleet(SinkSpec(make=Fused, loader=loader_of)) as (sink,), ParameterServer(Config.load(**settings)) as first:
        publish(first, "step-2", unfused(2), [sink])
        with ParameterServer(Config.load(commit=commit, **settings)) as server:
            publish(server, "step-3", unfused(3), [sink])
            tensors = unfused(4)
            memory = mmap.mmap(-1, tensors["q"].nbytes)
            moved = torch.frombuffer(memory, dtype=torch.bfloat16).view_as(tensors["q"])
            tensors["q"] = moved.copy_(tensors["q"])
            server.lend("step-4", tensors)
            quarter = moved.data_ptr() + moved.nbytes // 4 // mmap.PAGESIZE * mmap.PAGESIZE
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(quarter), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
            with pytest.raises(UpdateError, match="must not be freed before the update has ended"):
                server.update("step-4", [sink.address])
            state = sink.state()
            assert bool(state.tainted) == (commit == "in_place")
            assert state.tainted or state.holds(loaded(unfused(3)))
            server.unregister("step-4")
            publish(server, "step-5", unfused(5), [sink])
            assert sink.state().holds(loaded(unfused(5)))


def test_given_ranks_that_slice_what_they_need_then_each_reads_no_more_into_its_tensors() -> None:
    specs = [SinkSpec({"rank": rank, "size": 2}, make=rank_of, loader=loader, engine="pair") for rank in range(2)]
    with fleet(*specs) as sinks, ParameterServer(CONFIG) as server:
        for step in (2, 3, 4):
            trained = weights_of(step)
            notes = passes_through_slots(publish(server, f"step-{step}", trained, sinks))
            assert bool(notes) == (step == 2)
            for rank, sink in enumerate(sinks):
                assert sink.state().holds({name: part_of(name, each, rank, 2) for name, each in trained.items()})


def test_given_an_update_by_p2p_then_they_pass_through_slots_to_be_compared_before_they_are_served() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        server.lend("step-2", weights(2))
        report = server.update_p2p("step-2", [sink.address])
        assert report is not None
        (note,) = passes_through_slots(report)
        assert "an update by P2P compares what comes before an engine is given it" in note
        assert sink.state().holds(weights(2))


def run_source(sink: str, pipe: Connection) -> None:
    with ParameterServer(CONFIG) as server:
        server.publish("step-2", weights(2), [sink])
        pipe.send("published")
        pipe.recv()


def test_given_a_trainer_that_was_killed_then_another_one_is_read_and_not_taken_for_it() -> None:
    with fleet(SinkSpec()) as sinks:
        ours, theirs = context.Pipe()
        process = context.Process(target=run_source, args=(sinks[0].address, theirs), daemon=True)
        process.start()
        assert ours.recv() == "published"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert sinks[0].state().holds(weights(2))
        with ParameterServer(CONFIG) as server:
            assert passes_through_slots(publish(server, "step-3", weights(3), sinks)) == []
        assert sinks[0].state().holds(weights(3))
