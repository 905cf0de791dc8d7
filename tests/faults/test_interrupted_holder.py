"""A holder that sends is interrupted at any step: engines get the version from another, and nothing of it is left."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from glob import glob
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from ckpt_transport import Config, Holder, Joiner
from ckpt_transport.memory.segment import PREFIX, SHM
from ckpt_transport.update.messages import AnyOrder
from tests.fleet import SinkSpec, context, fleet, stop, weights
from tests.leftovers import started_here
from tests.patience import DEADLINE, PATIENT
from tests.support.interrupting import Interrupter

SHAPE = {"layers": 4, "width": 64}
POINTS = 12
"""Steps that are interrupted, of the thousands that an update makes."""


class InUpdate(Interrupter):
    """Counts the steps of a holder from the first order on that it follows."""

    def __init__(self, holder: Holder) -> None:
        super().__init__("ckpt_transport")
        self._follows, self._step_of = False, holder._step
        holder._step = self._begin  # type: ignore[method-assign]

    def _begin(self, order: AnyOrder) -> None:
        self._follows = True
        self._step_of(order)

    def _step(self, frame: FrameType, event: str, argument: Any) -> None:
        if self._follows:
            super()._step(frame, event, argument)


def holder_of(seed: int) -> Holder:
    return Holder(f"v{seed}", tensors=weights(seed, **SHAPE), config=Config.load(**PATIENT))


def run_holders(pipe: Connection) -> None:
    """One holder after the other serves on this process's main thread, until an interrupt or until told to end."""
    while (told := pipe.recv()) != "stop":
        at, seed = told
        holder = holder_of(seed)
        closing = threading.Thread(target=close_when_told, args=(holder, pipe))
        interrupter = InUpdate(holder)
        with suppress(KeyboardInterrupt), holder:
            pipe.send(holder.address_file)
            closing.start()
            interrupter.run(holder.serve, at)
        left = [str(path) for path in SHM.glob(f"{PREFIX}{os.getuid()}-{os.getpid()}-*")]
        left += [holder.address for _ in glob(holder.address.removeprefix("ipc://"))]
        closing.join()
        pipe.send((interrupter.steps, interrupter.place, left))
    pipe.send("stopped")


def close_when_told(holder: Holder, pipe: Connection) -> None:
    pipe.recv()
    holder.close()


def test_given_an_interrupt_of_a_holder_at_any_step_then_the_other_sends_all_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    config = Config.load(**PATIENT, transport="gloo", bucket_bytes="16KiB", ring_depth=2)
    files = [tmp_path / "lasting.json", tmp_path / "interrupted.json"]
    pipe, theirs = context.Pipe()
    process = context.Process(target=run_holders, args=(theirs,), daemon=True)
    process.start()
    started_here(process)
    theirs.close()
    with fleet(SinkSpec(SHAPE)) as (sink,):

        def join(at: int, lasting: Holder, seed: int) -> int:
            """Interrupt the other holder at that step, while an engine joins; how many steps it has made."""
            lasting.start()
            lasting.address_file.save(files[0], config)
            pipe.send((at, seed))
            assert pipe.poll(DEADLINE), "the holder does not start"
            pipe.recv().save(files[1], config)
            Joiner(files, config).update(lasting.version, [sink.address])
            pipe.send("over")
            assert pipe.poll(DEADLINE), "the holder does not end"
            steps, place, left = pipe.recv()
            assert left == [], place
            state = sink.state()
            assert (state.version, state.served) == (lasting.version, ""), place
            assert state.holds(weights(seed, **SHAPE)), place
            return int(steps)

        try:
            with holder_of(2) as lasting:
                steps = join(0, lasting, 2)
            for seed, at in enumerate(range(1, steps, steps // POINTS), 3):
                with holder_of(seed) as lasting:
                    join(at, lasting, seed)
        finally:
            stop(process, pipe)
