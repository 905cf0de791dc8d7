"""Given a trainer with expandable_segments, then sinks map what it hands over, or tensors pass through slots."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_transport.memory import why_no_pages
from ckpt_transport.memory.cuda_bindings import call_driver, cuda_bindings
from ckpt_transport.memory.cuda_pages import CudaPages
from ckpt_transport.memory.exported import find_allocations
from ckpt_transport_cuda_ipc.memory import as_tensor
from tests.fleet import SinkProcess, SinkSpec, by_name, fleet, weights
from tests.gpu.test_update import GROWTH, used
from tests.injection import Fault
from tests.patience import DEADLINE, PATIENCE, SWIFT

ROOT = Path(__file__).parents[2]
DEVICE = "cuda"
WIDE: Mapping[str, Any] = {"width": 4096, "layers": 2}
"""A tensor of 64 MiB lies in several allocations of 20 MiB."""
SMALL = {"bucket_bytes": "1MiB", "ring_depth": 2}
SETTINGS: Mapping[str, Any] = {**SWIFT, "heartbeat_timeout": 5.0, **SMALL}
USER = 64001
CLONE_NEWNET = 0x40000000
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users, or leave a namespace")


def on(device: str) -> dict[str, Any]:
    return {**WIDE, "device": device}


class TrainerProcess:
    """A running :mod:`tests.gpu.expandable_trainer`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert self._answer() == {"ready": True}

    def do(self, order: str, seed: int = 0) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order} {seed}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the trainer has ended with {self.process.wait(PATIENCE)}"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def trainer(
    sinks: Sequence[SinkProcess], *, expandable: bool = True, device: str = "", user: int = 0, **settings: Any
) -> Iterator[TrainerProcess]:
    command = [sys.executable, "-m", "tests.gpu.expandable_trainer", "--device", device or DEVICE]
    command += ["--shape", json.dumps(dict(WIDE)), "--settings", json.dumps({**SETTINGS, **settings})]
    command += ["--user", str(user), "--sinks", *(sink.address for sink in sinks)]
    env = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": f"expandable_segments:{expandable}"}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield TrainerProcess(process)
        finally:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(DEADLINE)
            process.kill()


def check(answer: Mapping[str, Any], sinks: Sequence[SinkProcess], seed: int) -> None:
    """What was published was mapped where it lay, and every sink holds it bit by bit."""
    assert answer.get("in_place"), answer
    assert answer["kinds"] == ["paged"]
    assert answer["transports"] == ["cuda_ipc"]
    for sink in sinks:
        state = sink.state()
        assert (state.tainted, state.served) == ("", "")
        assert state.holds(weights(seed, **WIDE))


def large(allocations: Sequence[tuple[int, int, int]]) -> set[int]:
    """The numbers of those that hold nothing else than weights."""
    return {number for _, nbytes, number in allocations if nbytes > 2 << 20}


def open_files_of(sink: SinkProcess) -> int:
    return len(os.listdir(f"/proc/{sink.process.pid}/fd"))


def test_given_this_gpu_then_what_handing_over_stands_on_holds() -> None:
    assert why_no_pages(torch.device("cuda", torch.cuda.current_device())) == ""


@pytest.mark.parametrize("loader", [None, by_name], ids=["in pieces", "whole"])
@pytest.mark.parametrize("sinks", [1, 2])
def test_given_segments_that_can_grow_then_sinks_read_tensors_where_they_lie(sinks: int, loader: Any) -> None:
    with fleet(*[SinkSpec(on(DEVICE), loader=loader)] * sinks) as running, trainer(running) as lender:
        for seed in (2, 3, 4):
            check(lender.do("step", seed), running, seed)


def test_given_a_segment_that_grows_between_two_updates_then_what_is_new_is_mapped_too() -> None:
    with fleet(SinkSpec(on(DEVICE))) as sinks, trainer(sinks) as lender:
        check(lender.do("step", 2), sinks, 2)
        before = lender.do("allocations")["allocations"]
        assert max(nbytes for _, nbytes, _ in before) < 4 * WIDE["width"] ** 2, "no tensor lies in several"
        assert len({number for _, _, number in before}) == len(before)
        for seed in (3, 4):
            check(lender.do("grow", seed), sinks, seed)
        after = lender.do("allocations")["allocations"]
        assert {number for _, _, number in after} - {number for _, _, number in before}
        check(lender.do("step", 5), sinks, 5)


def test_given_memory_that_came_to_the_addresses_of_other_memory_then_it_is_not_taken_for_that() -> None:
    with fleet(SinkSpec(on(DEVICE))) as sinks, trainer(sinks) as lender:
        check(lender.do("step", 2), sinks, 2)
        before = lender.do("allocations")["allocations"]
        for seed in (3, 4):
            check(lender.do("move", seed), sinks, seed)
        after = lender.do("allocations")["allocations"]
        assert not large(after) & large(before)


def test_given_a_trainer_that_frees_what_it_has_lent_then_nothing_is_applied_and_the_next_step_is() -> None:
    with fleet(SinkSpec(on(DEVICE))) as sinks, trainer(sinks) as lender:
        check(lender.do("step", 2), sinks, 2)
        assert "UpdateAbortedError" in lender.do("free", 3)["error"]
        assert sinks[0].state().holds(weights(2, **WIDE))
        check(lender.do("step", 4), sinks, 4)


@pytest.mark.parametrize("order", ["step", "move"])
def test_given_twenty_updates_then_neither_memory_nor_open_files_grow(order: str) -> None:
    with fleet(SinkSpec(on(DEVICE))) as sinks, trainer(sinks) as lender:
        for seed in range(2, 6):
            lender.do(order, seed)
        before = used(), open_files_of(sinks[0])
        for seed in range(6, 26):
            check(lender.do(order, seed), (), seed)
        assert used() <= before[0] + GROWTH
        assert open_files_of(sinks[0]) <= before[1]
        check(lender.do(order, 26), sinks, 26)


def test_given_a_trainer_that_is_killed_then_the_sink_serves_and_another_one_updates_it() -> None:
    with fleet(SinkSpec(on(DEVICE))) as sinks:
        with trainer(sinks) as lender:
            check(lender.do("step", 2), sinks, 2)
            lender.process.kill()
        assert sinks[0].state().holds(weights(2, **WIDE))
        with trainer(sinks) as lender:
            check(lender.do("step", 3), sinks, 3)


def test_given_a_sink_that_is_killed_while_it_reads_then_the_trainer_goes_on() -> None:
    victim = SinkSpec(on(DEVICE), fault=Fault("load", count=2))
    with fleet(victim) as sinks, trainer(sinks) as lender:
        assert "error" in lender.do("step", 2)
        assert lender.do("allocations")["allocations"]


@two_gpus
@pytest.mark.parametrize("gpus", [("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")])
def test_given_an_engine_on_another_gpu_then_it_maps_what_it_is_handed(gpus: tuple[str, str]) -> None:
    with fleet(SinkSpec(on(gpus[1]))) as sinks, trainer(sinks, device=gpus[0]) as lender:
        for seed in (2, 3):
            check(lender.do("step", seed), sinks, seed)


def leave_network() -> None:
    assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0


@only_root
def test_given_a_sink_in_another_network_namespace_then_tensors_pass_through_slots_and_the_plan_says_why() -> None:
    specs = [SinkSpec(on(DEVICE)), SinkSpec(on(DEVICE), prepare=leave_network)]
    with fleet(*specs) as sinks, trainer(sinks) as lender:
        for seed in (2, 3):
            answer = lender.do("step", seed)
            assert answer.get("in_place") is False, answer
            assert any("network namespace, and cannot be handed" in note for note in answer["notes"])
            assert all(sink.state().holds(weights(seed, **WIDE)) for sink in sinks)


def refuse_long_ranges() -> None:
    """From now on the driver of this process lets nobody use a range as long as that of the weights."""
    from ckpt_transport.errors import RegistrationError

    let_use = CudaPages.let_use

    def refuse(cuda: CudaPages, address: int, nbytes: int) -> None:
        if nbytes > 32 << 20:
            raise RegistrationError("cuMemSetAccess: CUDA_ERROR_NOT_PERMITTED")
        let_use(cuda, address, nbytes)

    setattr(CudaPages, "let_use", refuse)  # noqa: B010


def test_given_a_driver_that_refuses_what_it_let_be_tried_then_nothing_is_changed_and_slots_take_the_next_step() -> (
    None
):
    with fleet(SinkSpec(on(DEVICE), prepare=refuse_long_ranges)) as sinks, trainer(sinks) as lender:
        answer = lender.do("step", 2)
        assert "UpdateAbortedError" in answer["error"]
        assert "CUDA_ERROR_NOT_PERMITTED" in answer["error"]
        assert sinks[0].state().holds(weights(1, **WIDE))
        for seed in (3, 4):
            answer = lender.do("step", seed)
            assert answer.get("in_place") is False, answer
            assert any("does not map what it is handed: cuMemSetAccess" in note for note in answer["notes"])
            assert sinks[0].state().holds(weights(seed, **WIDE))


@only_root
def test_given_a_trainer_of_another_user_then_tensors_go_another_way() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        files = [Path(name) / str(user) for user in (0, USER)]
        for file, user in zip(files, (0, USER), strict=True):
            file.write_bytes(b"a secret of both users of this test")
            file.chmod(0o600)
            os.chown(file, user, user)
        secret = {"secret_file": str(files[0])}
        spec = SinkSpec(on(DEVICE), settings=secret, address="tcp://127.0.0.1:0")
        with fleet(spec) as sinks, trainer(sinks, user=USER, secret_file=str(files[1])) as lender:
            answer = lender.do("step", 2)
            assert answer.get("in_place") is False, answer
            assert "cuda_ipc" not in answer["transports"]
            assert sinks[0].state().holds(weights(2, **WIDE))


def test_given_memory_that_was_not_made_to_be_exported_then_it_is_said_so() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    with torch.cuda.device(device), contextlib.ExitStack() as undo:
        cuda = CudaPages(device)
        nbytes = cuda.granularity()
        address = cuda.reserve(nbytes)
        undo.callback(cuda.release, address, nbytes)
        wanted = cuda._properties()
        driver = cuda_bindings("driver")
        wanted.requestedHandleTypes = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_NONE
        cuda._map(address, nbytes, call_driver("cuMemCreate", nbytes, wanted, 0))
        undo.callback(cuda.unmap, address, nbytes)
        cuda.let_use(address, nbytes)
        tensor = as_tensor(address, nbytes, device)
        undo.callback(torch.cuda.synchronize)
        with pytest.raises(Exception, match="CUDA cannot export the memory that they lie in"):
            find_allocations({device}, [(tensor.data_ptr(), tensor.nbytes)])
