"""One rank's part in one update, phase by phase: propose, open, connect, run, then commit or abort.

The coordinator calls these methods on its own participant and sends the same words to everybody else, whose
:class:`Follower` calls them when the messages arrive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from ckpt_transport.control import Mailbox, Message
from ckpt_transport.errors import PlanMismatchError, TransferTimeout
from ckpt_transport.execution import Event, Pipeline, Program, Sources
from ckpt_transport.memory import Backing, Buffer, Fence
from ckpt_transport.planning import IN_PLACE, Bucket, Plan
from ckpt_transport.session import messages as m
from ckpt_transport.session.engine import Engine, LoadedBucket
from ckpt_transport.session.plans import Expected, Plans
from ckpt_transport.session.routes import OpenRoute, RouteTable, Watch

Progress = Callable[[int], None]
TICK_SECONDS = 0.1


class Participant:
    """The phases of an update on one rank.

    Args:
        mailbox: this participant's.
        table: the routes it keeps open.
        plans: what it knows from the last update.
        extents: what is behind the version's extents that this rank owns, in the order of the manifest; none on a sink.
        engine: where weights go; None on a source.
        deadline: seconds of the monotonic clock after which the update has failed.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        table: RouteTable,
        plans: Plans,
        extents: Sequence[Backing],
        engine: Engine | None,
        deadline: float,
    ) -> None:
        self._mailbox, self._table, self._extents, self._engine = mailbox, table, extents, engine
        self._plans = plans
        self._deadline = deadline
        self._program: Program | None = None
        self._addresses: Sequence[str] = ()
        self._names: Sequence[str] = ()
        self._routes: dict[int, OpenRoute] = {}
        self._sources = Sources()
        self.applying = False
        """Whether the engine has been given a byte."""

    def propose(self, plan: Plan, rank: int, addresses: Sequence[str], names: Sequence[str]) -> str:
        """Look at the plan and return its digest.

        Raises:
            PlanMismatchError: this rank's engine cannot take what the plan brings; names the tensor.
        """
        if self._engine is not None:
            expected = self._engine.expects()
            if not self._plans.fits(plan, expected):
                _check_expected(plan, self._engine, expected)
                self._plans.found_fit(plan, expected)
            self._engine.prepare([tensor.spec for tensor in plan.manifest.tensors])
        self._program, self._addresses, self._names = self._plans.program(plan, rank), addresses, names
        return plan.digest

    def take(self, proposed: m.Propose) -> Plan:
        """The plan that the coordinator means."""
        return self._plans.take(proposed.plan, proposed.shape, proposed.version)

    def open(self, watch: Watch) -> dict[int, list[bytes]]:
        """Attach to the routes and register memory; the descriptors of what this rank lends."""
        program = self._ready_program
        self._routes = self._table.open(program, self._names, self._addresses, self._time_left(), watch)
        numbers = [n for n, extent in enumerate(program.plan.manifest.extents) if extent.owner == program.rank]
        extents = dict(zip(numbers, self._extents, strict=True)) if self._extents else {}
        buffers = {number: extent for number, extent in extents.items() if isinstance(extent, Buffer)}
        descriptors, ring = self._table.lend(program, self._names, buffers)
        self._sources = Sources(extents, None if ring is None else ring.tensor)
        return descriptors

    def connect(self, descriptors: Mapping[int, Mapping[int, Sequence[bytes]]]) -> None:
        """Learn what the senders of this rank's routes lend."""
        for number, route in self._routes.items():
            route.attachment.endpoint.connect(descriptors.get(number, {}))

    def run(self, watch: Watch, progress: Progress = lambda nbytes: None) -> list[Event]:
        """Run this rank's part of the plan.

        Raises: whatever ended it early.
        """
        attachments = {number: route.attachment for number, route in self._routes.items()}

        def guarded() -> None:
            watch()
            if time.monotonic() > self._deadline:
                raise TransferTimeout("the update did not end before its deadline; see update_timeout")

        pipeline = Pipeline(
            self._ready_program,
            attachments,
            self._sources,
            self._apply,
            guarded,
            self._mailbox.pump,
            self._mailbox.wake,
            progress,
        )
        events = pipeline.run()
        if self._engine is not None:
            self._engine.finish()
        return events

    def abort(self, reason: BaseException) -> None:
        """Give up: fail what is outstanding, close the routes."""
        self._table.abort(reason)

    def _apply(self, bucket: Bucket, views: Sequence[torch.Tensor]) -> Fence | None:
        assert self._engine is not None
        (view,) = views
        plan = self._ready_program.plan
        tensors = plan.manifest.tensors
        lasting = bucket.fill_slot == bucket.slot == IN_PLACE
        self.applying = True
        return self._engine.load(
            LoadedBucket(
                (plan.shape, bucket.offset, bucket.extent),
                view,
                lambda: [
                    (tensors[piece.tensor].spec, piece.tensor_offset, piece.bucket_offset, piece.nbytes)
                    for piece in bucket.pieces
                ],
                lasting,
            )
        )

    @property
    def _ready_program(self) -> Program:
        assert self._program is not None, "no plan was proposed"
        return self._program

    def _time_left(self) -> float:
        return max(self._deadline - time.monotonic(), 0.0)


class Follower:
    """Does as the coordinator's messages say, and answers each."""

    def __init__(self, update: str, participant: Participant, engine: Engine | None, timeout: float) -> None:
        self.update = update
        self._participant, self._engine, self._timeout = participant, engine, timeout
        self._rank = -1

    @property
    def rank(self) -> int:
        """This participant's rank in the update, -1 before a plan was proposed."""
        return self._rank

    @property
    def applying(self) -> bool:
        return self._participant.applying

    def answer(self, message: Message, watch: Watch) -> Message | None:
        """Do what ``message`` asks for and return the answer; None when it is not a step of an update.

        Raises: whatever went wrong; the caller tells the coordinator.
        """
        participant, engine = self._participant, self._engine
        match message:
            case m.Propose():
                self._rank = message.rank
                plan = participant.take(message)
                digest = participant.propose(plan, message.rank, message.addresses, message.routes)
                return m.Agree(self.update, self._rank, digest)
            case m.Open():
                return m.Opened(self.update, self._rank, participant.open(watch))
            case m.Connect():
                participant.connect(message.descriptors)
                return m.Connected(self.update, self._rank)
            case m.Hold() if engine is not None:
                return m.Held(self.update, self._rank, engine.hold())
            case m.Advance() if engine is not None:
                self._advance(engine, message.forwards, watch)
                return m.Still(self.update, self._rank)
            case m.Run():
                events = participant.run(watch)
                return m.Ran(self.update, self._rank, events, "" if engine is None else engine.told)
            case m.Commit():
                return m.Committed(self.update, self._rank, 0.0 if engine is None else engine.resume())
        return None

    def _advance(self, engine: Engine, forwards: int, watch: Watch) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return engine.advance(forwards, TICK_SECONDS)
            except TimeoutError:
                watch()
                if time.monotonic() > deadline:
                    raise


def _check_expected(plan: Plan, engine: Engine, expected: Expected) -> None:
    """The plan brings what the engine expects, no more and no less."""
    if expected is None:
        return
    brought = {tensor.spec.name: tensor.spec for tensor in plan.manifest.tensors}
    version = plan.manifest.version
    tied = {name: names for names in engine.ties() for name in names}
    arriving = frozenset(brought)
    for spec in expected:
        if spec.name not in brought:
            if tied.get(spec.name, frozenset()) & arriving:
                continue
            raise PlanMismatchError(f"version '{version}' lacks tensor {spec}, which {engine.label} has")
        other = brought.pop(spec.name)
        if other != spec:
            raise PlanMismatchError(
                f"tensor {spec.name} is {other.dtype} {list(other.shape)} in version '{version}' and "
                f"{spec.dtype} {list(spec.shape)} in {engine.label}"
            )
    if brought:
        names = ", ".join(sorted(brought)[:5])
        raise PlanMismatchError(f"version '{version}' has tensors that {engine.label} does not: {names}")
