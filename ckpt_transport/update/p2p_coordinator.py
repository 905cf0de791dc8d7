"""The coordinator of an update by P2P goes on when members leave.

An update of a serving fleet happens everywhere or nowhere. When engines are brought to a version that others hold, one
that dies need not stop the rest, nor need a holder, as long as somebody else holds what it held. So a failure ends only
the *round*: all members stop, say what their engines were given, and stay as they are, held. Whoever is gone is left
out, and a new plan brings what not every sink has to those that remain. What a sink was given before, it does not
take a second time. The version is committed when every sink that remains has every byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec

from ckpt_transport.errors import (
    CheckpointError,
    CkptTransportError,
    ConfigError,
    CoverageError,
    JoinError,
    TransportError,
)
from ckpt_transport.execution import StageEvent
from ckpt_transport.planning import AUTO, ByteRangeSet, Plan, Role, TensorRange, TensorSpec, Topology
from ckpt_transport.update import messages as m
from ckpt_transport.update.coordinator import Coordinator
from ckpt_transport.update.membership import TICK_SECONDS
from ckpt_transport.update.progress import Progress

COMPARED_BEFORE = "an update by P2P compares what comes before an engine is given it"
FRUITLESS_ROUNDS = 3
"""So many rounds in a row may fail in which nobody left and nothing arrived."""


class P2PCoordinator(Coordinator):
    """Leads one update that members may leave."""

    kind: ClassVar[str] = "p2p"
    resumable: ClassVar[bool] = True
    takes_deltas: ClassVar[bool] = False

    def _bring(self, progress: Progress, before_hold: Callable[[], None]) -> tuple[Plan, Sequence[StageEvent]]:
        self._members.turn.keep()
        present: tuple[TensorRange, ...] = ()
        specs: dict[str, TensorSpec] = {}
        made: Plan | None = None
        told = standing = False
        fruitless = had = 0
        while True:
            try:
                self._clock.enter("plan")
                made = self._plan_for_who_is_left(present)
                specs = specs or made.manifest.specs
                lacking = specs.keys() - made.manifest.specs.keys()
                if lacking:
                    raise CoverageError(f"nobody holds {specs[min(lacking)]} any more")
                self._prepare(made)
                self._clock.enter("hold")
                if not told:
                    before_hold()
                    told = True
                if not standing:
                    self._steps.hold()
                    standing = True
                self._clock.enter("run")
                return made, self._steps.run(made, progress)
            except CheckpointError:
                raise
            except CkptTransportError as error:
                members = len(self._members.addresses)
                self._clock.enter("regroup")
                everywhere = self._end_round(error)
                if made is None:
                    raise
                has = sum(nbytes for _, _, nbytes in everywhere)
                fruitless = 0 if has > had or len(self._members.addresses) < members else fruitless + 1
                had = has
                if fruitless and (fruitless == FRUITLESS_ROUNDS or not isinstance(error, TransportError)):
                    raise
                if everywhere.covers({name: spec.nbytes for name, spec in specs.items()}):
                    return made, []
                present = tuple(TensorRange(specs[name], start, nbytes) for name, start, nbytes in everywhere)

    def _topology(self) -> Topology:
        ranks = super()._topology()
        members = tuple(
            msgspec.structs.replace(rank, unread=rank.unread or COMPARED_BEFORE) for rank in ranks.participants
        )
        return Topology(members, ranks.shares)

    def _plan_for_who_is_left(self, present: Sequence[TensorRange]) -> Plan:
        """A plan by the transport that was asked for; by a part of it, if only that fits who is left."""
        try:
            return self._make_plan(present, self._config.transport)
        except ConfigError:
            return self._make_plan(present, AUTO)

    def _end_round(self, error: CkptTransportError) -> ByteRangeSet:
        """End the round everywhere, leave out who is gone, and return what every sink has that is left.

        Raises:
            CkptTransportError: ``error``, or another that leaves nobody to go on with.
        """
        members = self._members
        members.tell(m.Halt(self._update, members.round, str(error)), members.others)
        self._local.stop(error)
        self._hear_all()
        self._leave_out_broken_engines()
        for address in members.left:
            if address in members.addresses:
                members.order(address, m.Abort(self._update, "it has left the update"))
        kept = [0, *(rank for rank in members.others if members.addresses[rank] not in members.left)]
        has = [
            ByteRangeSet(members.stopped[members.addresses[rank]].has)
            for rank in kept
            if members.joins[rank].role is Role.SINK
        ]
        if not has:
            raise error
        manifests = [members.joins[rank].manifest for rank in kept]
        if not any(manifest is not None and manifest.tensors for manifest in manifests):
            raise JoinError(f"every holder has left: {'; '.join(members.left.values())}") from error
        members.keep(kept)
        everywhere = has[0]
        for other in has[1:]:
            everywhere = everywhere.intersection(other)
        return everywhere

    def _hear_all(self) -> None:
        """Wait until everybody has said what it has, or has left."""
        members = self._members
        deadline = time.monotonic() + self._config.heartbeat_timeout + self._config.join_timeout
        while True:
            waiting = [
                rank
                for rank in members.others
                if members.addresses[rank] not in members.stopped and members.addresses[rank] not in members.left
            ]
            for rank in waiting:
                if not members.alive(rank):
                    silence = f"no sign of life for {self._config.heartbeat_timeout:g} s"
                    members.left[members.addresses[rank]] = f"{members.joins[rank].label} is gone: {silence}"
                elif time.monotonic() > deadline:
                    members.left[members.addresses[rank]] = f"{members.joins[rank].label} did not stop in time"
            if not waiting:
                return
            members.hear(TICK_SECONDS)

    def _leave_out_broken_engines(self) -> None:
        """Of an engine of several ranks, all go on or none: one without the others would serve a mix."""
        members = self._members
        broken = {
            join.engine: join.label
            for address, join in zip(members.addresses, members.joins, strict=True)
            if address in members.left and join.engine
        }
        for address, join in zip(members.addresses, members.joins, strict=True):
            if join.engine in broken and address not in members.left:
                members.left[address] = f"{join.label} leaves with {broken[join.engine]}, a rank of the same engine"
