"""A sink answers invitations, follows an update, and says which version its engine serves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from ckpt_transport.config import Config
from ckpt_transport.control import Message
from ckpt_transport.engine.engine import Engine
from ckpt_transport.errors import CkptTransportError, UpdateAbortedError, UsageError
from ckpt_transport.memory import default_budget
from ckpt_transport.planning import TensorSpec
from ckpt_transport.reasons import named_reason
from ckpt_transport.release import RELEASE
from ckpt_transport.service import questions as q
from ckpt_transport.service.announcements import Announcements
from ckpt_transport.service.claims import ClaimRecord
from ckpt_transport.service.ended_update import EndedUpdate
from ckpt_transport.service.kept_versions import KeptVersions
from ckpt_transport.service.listener import Listener
from ckpt_transport.service.served_base import ServedBase
from ckpt_transport.service.serving import Serving
from ckpt_transport.service.settling import Settling
from ckpt_transport.service.tells_changes import TellsChanges
from ckpt_transport.service.warm_up import WarmUps
from ckpt_transport.update import messages as m
from ckpt_transport.update.delta_engine import DeltaEngine
from ckpt_transport.update.element_maps import ElementMaps
from ckpt_transport.update.follower import Follower
from ckpt_transport.update.introduction import States
from ckpt_transport.update.participant import Participant
from ckpt_transport.update.settlement import Course, Standing


class Sink(Listener):
    """Makes one engine updatable at an address. Drive it with :meth:`start` (own thread) or :meth:`serve` (yours).

    Args:
        engine: the way into the engine.
        address: where it can be invited; empty for a new address that only this user can reach.
        version: what the engine serves now.
        config: deadlines, budget and secret; by default from the environment.

    Attributes:
        claim: who drives the engine from outside.
    """

    _kind = "sink"

    def __init__(self, engine: Engine, address: str = "", version: str = "", config: Config | None = None) -> None:
        self._engine = engine
        self._serving = Serving(engine, version)
        self._told = TellsChanges(engine.label)
        self.claim = ClaimRecord()
        self._settling: Settling | None = None
        self._asleep = ""
        """A coordinator that was taken for dead, while its update is ended without it."""
        self._kept = KeptVersions()
        self._base = ServedBase(engine)
        self._maps = ElementMaps()
        self._taking: Engine = engine
        """What takes the update that goes on: the engine, or for a delta what stands in for it."""
        self._deltas_follow = False
        self._ended = EndedUpdate()
        self._announcements = Announcements()
        self._warm_ups = WarmUps(engine)
        super().__init__(address, config)  # the last call, so that no interrupt comes when the address is taken

    @property
    def label(self) -> str:
        """What people call this sink."""
        return self._engine.label

    @property
    def version(self) -> str:
        """The version that is served; of a tainted sink, the one it served last."""
        return self._serving.version

    @property
    def tainted(self) -> str:
        """Why this sink must not serve; empty when it may."""
        return self._serving.tainted

    def announce(self, address: str) -> None:
        """Tell the mailbox at ``address`` where this sink is and what it serves; from any thread."""
        self._call_guard.check()
        self._announcements.add(address)

    def warm_up(self, specs: Sequence[TensorSpec]) -> None:
        """Do in the background, while the engine serves, what its first update would do; from any thread.

        An update that comes meanwhile waits for the step that runs, and goes on without the others. What goes wrong is
        logged, and named by ``ckpt-transport version``.

        Args:
            specs: the tensors that versions will have.
        """
        self._call_guard.check()
        self._warm_ups.ask(specs)

    def _refuses(self, invite: m.Invite) -> str:
        self._warm_ups.leave()
        self._look_after_warm_up()
        if objection := self._serving.objection_to_part(invite):
            return objection
        try:
            self._engine.begin()
        except CkptTransportError as error:
            return f"{self.label}: {error}"
        except Exception as error:
            return f"{self.label} cannot be looked at: {named_reason(error)}"
        self._taking = self._engine
        if invite.delta:
            self._taking = DeltaEngine(self._engine, invite.base, self._maps, self._kept.make_room)
        self._deltas_follow = invite.deltas_follow
        return ""

    def _objection_to_delta(self, asked: q.AskBase) -> str:
        """Why the difference to a base cannot be put on what is served; empty when it can."""
        if self._follower is not None or self._in_doubt or self._watchdog.stuck:
            return f"{self.label} is in the middle of an update"
        if objection := self._serving.objection_to_delta(asked):
            return objection
        self._warm_ups.leave()
        return self._base.objection()

    def _base_served(self, asked: q.AskBase) -> q.BaseServed:
        if why := self._objection_to_delta(asked):
            return q.BaseServed(self.label, why)
        elements = self._engine.served_elements()
        return q.BaseServed(self.label, "", self._maps.share(elements), tuple(elements.whole))

    def _follow(self, invite: m.Invite, deadline: float) -> Follower:
        part_of = "" if invite.delta else invite.base
        undo = self._kept.undo
        if undo is not None and not undo.digest_left:
            undo.digest_left = self._base.digest
        participant = Participant(
            self._mailbox, self._table, self._plans, (), self._taking, deadline, base=part_of, undo=undo
        )
        return Follower(invite.update, invite.nonce, participant, self._taking, self.config.join_timeout, deadline)

    def _introduce(self, invite: m.Invite, states: States) -> m.Join:
        unstaged, place = "", None
        if invite.base and not invite.delta:
            unstaged = f"'{invite.version}' is a part of a version"
        elif invite.staged or invite.delta:
            unstaged = self._taking.can_stage(self._staging_budget(invite))
            place = None if unstaged else self._taking.staging_place()
        return self._introducer.of_sink(
            self._taking,
            states,
            self._table.names,
            self._plans,
            unstaged=unstaged,
            staging=place,
            previous=self._previous,
        )

    @property
    def _previous(self) -> str:
        """The version to which a rollback leads; empty for none."""
        return next(iter(self._kept.names), "")

    def _staging_budget(self, invite: m.Invite) -> int:
        """Bytes that a staged version may take. For a delta, the oldest undo logs make room where it is needed."""
        free = default_budget(self._engine.device) + (self._kept.nbytes if invite.delta else 0)
        return self.config.staging_budget or free

    def _served(self) -> q.ServedVersion:
        follower = None if self._watchdog.stuck else self._follower
        return q.ServedVersion(
            self._engine.label,
            self._serving.version,
            self._serving.tainted,
            "" if self._watchdog.stuck else self._target_version,
            self._engine.group,
            self._watchdog.stuck,
            self._in_doubt,
            self._warm_ups.said,
            self._previous,
            earlier=self._kept.names[1:],
            release=RELEASE,
            since=self._serving.since,
            clock=time.time(),
            state="" if follower is None else follower.state,
            arrivals=() if follower is None else follower.arrivals,
        )

    def _committed(self) -> None:
        if self._follower is not None:
            self._ended.note(self._follower.staged, Standing.FORWARD)
        self._engine.certify()
        self._check_not_given_up()
        self._remember_previous(self._follower)
        self._serving.becomes(self._target_version)
        self._serving.update = "" if self._follower is None else self._follower.update

    def _remember_previous(self, follower: Follower | None) -> None:
        """Note what brings the version back that was served up to now, if that is kept, and what is served instead."""
        by = self._taking
        if follower is not None and follower.restores:
            by = self._kept.undo or self._engine
        if follower is None or not follower.staged or not self.config.keep_previous or self.tainted:
            self._kept.forget()
            self._engine.drop_staged()
            self._taking.drop_staged()
        elif follower.restores:
            self._kept.went_back(self.version, by)
        else:
            self._kept.was_left(self.version, self._taking, self.config.keep_previous)
        self._base.forget(note=self._deltas_follow or self._kept.undo is not None, by=by)

    def _leave(self) -> None:
        super()._leave()
        self._taking = self._engine

    def _dismissed(self, follower: Follower) -> None:
        self._check_not_given_up()
        if follower.staged:
            self._ended.note(follower.staged, Standing.BACK)
            self._kept.was_overwritten(self._taking)
            if not self.config.keep_previous:
                self._engine.drop_staged()
        if not self.tainted:
            self._engine.resume()

    def _given_up(self, follower: Follower, reason: BaseException) -> bool:
        """The old version goes on, unless a byte of the new one is in and cannot be taken back."""
        if why := self._why_tainted(follower, reason):
            self._serving.tainted = why
            self._kept.was_mixed()
            self._engine.taint(why)
        if not self.tainted:
            self._engine.resume()
        return bool(self.tainted)

    def _why_tainted(self, follower: Follower, reason: BaseException) -> str:
        """Why neither version may be served; empty when the old one is there, as it was or taken back."""
        half_way = f"an update to '{self._target_version}' failed half-way: {reason}"
        if follower.staged and self._ended.standing(follower.staged) is Standing.FORWARD:
            return half_way
        self._ended.note(follower.staged, Standing.BACK)
        if follower.staged and not follower.restores:
            self._kept.was_overwritten(self._taking)
        try:
            follower.take_back()
        except Exception as error:
            return f"{half_way}; it could not be taken back: {error}"
        return half_way if follower.applying else ""

    # -- settling an update whose coordinator is gone ----------------------------------------------------------------

    def _lose(self, follower: Follower | None, reason: BaseException) -> None:
        if follower is None or follower.standing is Standing.UNKNOWN:
            super()._lose(follower, reason)
            return
        self._follower = None
        self._table.abort(reason)
        self._settling = Settling(
            follower, self._coordinator, self._mailbox.send, self.config.heartbeat_timeout, reason
        )
        self._settle()

    @property
    def _in_doubt(self) -> str:
        """Why it is not known how an update has ended, so that nothing is served; empty when it is known."""
        settling = self._settling
        if settling is None or not settling.in_doubt:
            return ""
        return f"{self.label} has applied '{self._target_version}' and does not serve it: {settling.in_doubt}"

    def _settle(self) -> None:
        """Go on with what is being settled, as far as others have answered."""
        settling = self._settling
        if settling is None:
            return
        match settling.turn():
            case Course.WAIT | Course.IN_DOUBT:
                return
            case Course.FORWARD:
                self._end_settling(Standing.FORWARD)
            case Course.BACK:
                self._end_settling(Standing.BACK)

    def _join(self, coordinator: str, invite: m.Invite) -> None:
        if self._settling is not None and not self._in_doubt:
            reason = f"{self.label} settles with other sinks whether it serves '{self._target_version}'"
            self._mailbox.send_once(coordinator, m.Busy(invite.update, invite.address, reason))
            return
        if self._settling is not None:
            self._end_settling(Standing.FORWARD if self._settling.standing is Standing.DECIDED else Standing.BACK)
        self._ended.last_word = None
        super()._join(coordinator, invite)

    def _end_settling(self, standing: Standing) -> None:
        settling = self._settling
        assert settling is not None
        self._settling = None
        follower, self._asleep = settling.follower, settling.coordinator
        if standing is Standing.BACK:
            self._end(follower, settling.reason)
        else:
            self._follower = follower
            self._step(m.Commit(follower.update))
        self._asleep = ""

    def _tell_coordinator(self, message: m.Reply) -> None:
        """Also one that this sink has parted from: it may only have slept, and is to say what became of the update."""
        super()._tell_coordinator(message)
        self._ended.last_word = message
        if self._asleep and not self._coordinator:
            with suppress(CkptTransportError):
                self._mailbox.send_once(self._asleep, message)

    def _may_say(self, sender: str, order: m.AnyOrder) -> bool:
        """A coordinator that sleeps hears of no end. When it wakes, it goes on with its orders, and is told then."""
        end = self._ended.answer_to(order)
        if end is not None and self._knows(order):
            self._mailbox.answer(end)
            return False
        return super()._may_say(sender, order)

    def _answer_standing(self, asked: q.AskStanding) -> None:
        """Say how far this sink is. Whoever asks takes the coordinator for dead, so this one follows it no more."""
        follower = self._follower
        standing = self._ended.standing(asked.staged)
        is_led = follower is not None and follower.staged == asked.staged != ""
        if self._settling is not None and asked.staged == self._settling.follower.staged:
            standing = self._settling.standing
        elif is_led and follower is not None:
            standing = Standing.BACK if follower.standing is Standing.UNKNOWN else follower.standing
        self._mailbox.answer(q.SayStanding(asked.staged, asked.rank, standing))
        if is_led and not self._watchdog.stuck:
            raise UpdateAbortedError(f"another sink has lost {self._coordinator}, which led this update")

    def _answers(self, sender: str, message: Message) -> bool:
        match message:
            case q.AskExpected():
                self._mailbox.answer(q.ExpectedTensors(self._engine.label, self._engine.expects()))
            case q.AskStanding():
                self._answer_standing(message)
            case q.AskBase():
                self._mailbox.answer(self._base_served(message))
            case q.AskVersion(digest=True) if self._follower is None and not self._watchdog.stuck:
                self._mailbox.answer(msgspec.structs.replace(self._served(), digest=self._engine.digest()))
            case q.Resolve():
                if not self._in_doubt:
                    raise UsageError(f"{self.label} is not in doubt: it serves '{self.version}'")
                self._end_settling(Standing.FORWARD if message.forward else Standing.BACK)
                self._mailbox.answer(self._served())
            case q.SayStanding():
                if self._settling is not None:
                    self._settling.hears(message)
            case q.Claim():
                self._mailbox.check(sender)
                self.claim.look_after(self._mailbox)
                self._mailbox.answer(self.claim.take(sender, message))
                if self.claim.holder == sender:
                    self._mailbox.watch(sender)
            case q.Release():
                if self.claim.holder == sender:
                    self.claim.release(self._mailbox)
            case _:
                return super()._answers(sender, message)
        return True

    def _given_up_elsewhere(self, follower: Follower, reason: str) -> bool:
        if follower.revoke():
            self._serving.tainted = f"an update to '{self._target_version}' failed half-way: {reason}"
        self._engine.give_up(self.tainted)
        return bool(self.tainted)

    def _look_after_warm_up(self) -> None:
        """Begin one that was asked for. After one that has changed what is served, nothing must be served."""
        if self._follower is None and not self._in_doubt:
            self._warm_ups.begin_asked()
        if self._warm_ups.has_spoiled and not self.tainted:
            why = self._serving.tainted = "recording its loader, to warm up, has changed its weights; bring a version"
            self._engine.taint(why)

    def _release(self) -> None:
        self._warm_ups.leave(self.config.heartbeat_timeout)
        super()._release()

    def _between(self) -> None:
        self._settle()
        serving = self._serving
        if self._follower is None and not serving.tainted:
            self._base.note()
        staging = self._engine.staging_nbytes + self._kept.nbytes
        self._told.look(serving.update, serving.version, serving.tainted, self._in_doubt, staging)
        self.claim.look_after(self._mailbox)
        self._look_after_warm_up()
        self._announcements.send(self._mailbox, lambda: q.Here(self.address, self._served()), self._coordinator)
