"""The gate: weights change between forward passes, and nobody is left waiting inside one."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
import torch

from ckpt_transport import Gate
from ckpt_transport.errors import TaintedError
from ckpt_transport_torch.passes import passes_through
from tests.support.interrupting import Interrupter

PATIENCE = 60.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def passes(gate: Gate) -> int:
    """How many passes were started; leaves the gate open."""
    started = gate.hold()
    gate.resume()
    return started


@contextmanager
def waiting(gate: Gate) -> Iterator[Future[None]]:
    """A thread that stands before a held gate; the future is how its pass ends."""
    entering, ended = threading.Event(), Future[None]()

    def serve() -> None:
        entering.set()
        try:
            with gate.forward_pass():
                pass
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert entering.wait(PATIENCE)
    yield ended
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_given_passes_then_they_are_counted_once_each_however_they_nest() -> None:
    gate = Gate()
    for _ in range(3):
        with gate.forward_pass(), gate.forward_pass():
            gate.enter()
            gate.leave()
    assert gate.hold() == 3
    gate.advance(3, PATIENCE)
    assert gate.resume() >= 0
    with gate.forward_pass():
        pass
    assert gate.hold() == 4


def test_given_a_held_gate_then_a_pass_waits_until_it_is_resumed() -> None:
    gate = Gate()
    gate.hold()
    gate.advance(0, PATIENCE)
    with waiting(gate) as ended:
        assert not ended.done()
        gate.resume()
        ended.result(PATIENCE)
    assert passes(gate) == 1


def test_given_a_pass_that_runs_then_advancing_waits_for_its_end() -> None:
    gate = Gate()
    gate.enter()
    held = gate.hold()
    with ThreadPoolExecutor(1) as pool:
        advanced = pool.submit(gate.advance, held, PATIENCE)
        gate.enter()  # a pass within the pass goes straight through, or it would wait for itself
        gate.leave()
        assert not advanced.done()
        gate.leave()
        advanced.result(PATIENCE)


def test_given_a_pass_that_runs_when_held_then_requests_stand_still_from_its_end_only() -> None:
    gate = Gate()
    gate.enter()
    forwards = gate.hold()
    time.sleep(0.05)
    before_end = time.monotonic()
    gate.leave()
    gate.advance(forwards, PATIENCE)
    held = gate.resume()
    assert 0 <= held <= time.monotonic() - before_end


def test_given_more_passes_asked_for_then_exactly_those_are_let_through() -> None:
    gate = Gate()
    gate.hold()
    done = []

    def serve() -> None:
        for number in range(5):
            with gate.forward_pass():
                done.append(number)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    gate.advance(3, PATIENCE)
    assert done == [0, 1, 2]
    gate.advance(1, PATIENCE)
    assert done == [0, 1, 2]
    gate.resume()
    thread.join(PATIENCE)
    assert done == [0, 1, 2, 3, 4]


def test_given_passes_that_do_not_come_then_the_error_says_how_many_there_were() -> None:
    gate = Gate()
    with gate.forward_pass():
        pass
    gate.enter()
    with pytest.raises(
        TimeoutError, match=r"forward pass 4 did not end within 0.01 s \(2 started, 1 running\); do all"
    ):
        gate.advance(4, 0.01)
    gate.leave()
    gate.resume()
    assert passes(gate) == 2


@pytest.mark.parametrize("seed", range(5))
def test_given_tensor_parallel_ranks_then_stopping_them_never_deadlocks_and_stops_them_at_one_pass(seed: int) -> None:
    """A pass needs every rank: it meets the others inside. Ranks are held one after the other, at any moment."""
    size, updates = 3, 12
    gates = [Gate() for _ in range(size)]
    inside = threading.Barrier(size)
    stopping = threading.Event()
    versions = [0] * size
    seen: list[list[int]] = [[] for _ in range(size)]

    def serve(rank: int) -> None:
        chance = random.Random(seed * size + rank)
        while not stopping.is_set() or len(seen[rank]) < last[0]:
            with gates[rank].forward_pass():
                before = versions[rank]
                inside.wait(PATIENCE)
                if chance.random() < 0.1:
                    time.sleep(0.0005)
                assert versions[rank] == before
                seen[rank].append(before)

    last = [10**9]
    threads = [threading.Thread(target=serve, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    chance = random.Random(seed)
    for version in range(1, updates + 1):
        served = len(seen[0])
        until(lambda served=served: len(seen[0]) > served)  # type: ignore[misc]
        held = [gates[rank].hold() for rank in chance.sample(range(size), size)]
        assert max(held) - min(held) <= 1
        with ThreadPoolExecutor(size) as pool:
            list(pool.map(lambda gate: gate.advance(max(held), PATIENCE), gates))  # noqa: B023
        assert {gate.hold() for gate in gates} == {max(held)}
        versions[:] = [version] * size
        if version == updates:
            last[0] = max(held) + 1
            stopping.set()
        for gate in chance.sample(gates, size):
            gate.resume()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert seen[0] == seen[1] == seen[2]
    assert seen[0] == sorted(seen[0])
    assert set(seen[0]) == set(range(updates + 1))


def test_given_a_tainted_gate_then_passes_are_refused_and_those_that_wait_are_woken() -> None:
    gate = Gate()
    gate.hold()
    with waiting(gate) as ended:
        gate.taint("half of each version")
        with pytest.raises(TaintedError, match="half of each version"):
            ended.result(PATIENCE)
    with pytest.raises(TaintedError), gate.forward_pass():
        pytest.fail("a mix must not be served")
    gate.leave()
    gate.advance(0, PATIENCE)
    gate.resume()
    with gate.forward_pass():
        pass
    assert passes(gate) == 1


def test_given_a_pass_that_raises_then_the_gate_is_free() -> None:
    gate = Gate()
    with pytest.raises(ZeroDivisionError), gate.forward_pass():
        raise ZeroDivisionError
    gate.advance(gate.hold(), 0.0)


def test_given_a_pass_that_was_not_entered_when_it_is_left_then_nothing_happens() -> None:
    gate = Gate()
    gate.leave()
    with gate.forward_pass():
        pass
    gate.leave()
    gate.advance(gate.hold(), 0.0)


def test_given_many_threads_then_each_has_its_own_passes() -> None:
    gate = Gate()
    with ThreadPoolExecutor(8) as pool, gate.forward_pass():
        list(pool.map(lambda _: gate.leave(), range(20)))
        with pytest.raises(TimeoutError, match="1 running"):
            gate.advance(1, 0.0)
    gate.resume()

    def serve(_: int) -> None:
        with gate.forward_pass(), gate.forward_pass():
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(serve, range(200)))
    assert passes(gate) == 201
    gate.advance(gate.hold(), 0.0)


# -- as hooks of a module


class Moody(torch.nn.Module):
    """Raises when it is told to; calls itself once."""

    def __init__(self) -> None:
        super().__init__()
        self.mood: type[BaseException] | None = None
        self.deep = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.deep:
            self.deep = False
            return torch.as_tensor(self(x))
        if self.mood is not None:
            raise self.mood("a bad day")
        return x + 1


def gated(gate: Gate) -> Moody:
    module = Moody()
    passes_through(module, gate)
    return module


@pytest.mark.parametrize("deep", [False, True])
def test_given_a_module_whose_forward_raises_then_the_gate_is_free(deep: bool) -> None:
    gate = Gate()
    module = gated(gate)
    module.deep, module.mood = deep, ValueError
    with pytest.raises(ValueError, match="a bad day"):
        module(torch.ones(1))
    gate.advance(gate.hold(), 0.0)
    gate.resume()
    module.deep, module.mood = deep, None
    assert module(torch.ones(1)) == 2
    assert passes(gate) == 2


def test_given_a_later_pre_hook_that_raises_then_the_gate_is_free() -> None:
    gate = Gate()
    module = gated(gate)

    def refuse(*_: object) -> None:
        raise ValueError("refused")

    module.register_forward_pre_hook(refuse)
    with pytest.raises(ValueError, match="refused"):
        module(torch.ones(1))
    gate.advance(gate.hold(), 0.0)


def test_given_a_tainted_gate_then_the_module_does_not_run() -> None:
    gate = Gate()
    module = gated(gate)
    gate.taint("a mix")
    with pytest.raises(TaintedError, match="a mix"):
        module(torch.ones(1))
    gate.advance(gate.hold(), 0.0)


def test_given_an_interrupted_forward_then_the_gate_is_free() -> None:
    gate = Gate()
    module = gated(gate)
    module.mood = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        module(torch.ones(1))
    gate.advance(gate.hold(), 0.0)


def test_given_an_interrupt_at_any_step_of_a_pass_then_the_gate_is_free() -> None:
    gate = Gate()
    module = gated(gate)
    interrupter, at = Interrupter(), 0
    while at == 0 or interrupter.place:
        at += 1
        with suppress(KeyboardInterrupt):
            interrupter.run(lambda: module(torch.ones(1)), at)
        with ThreadPoolExecutor(1) as sink:
            sink.submit(lambda: gate.advance(gate.hold(), 0.0)).result(PATIENCE)
            sink.submit(gate.resume).result(PATIENCE)
    assert at > 10
