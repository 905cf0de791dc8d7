"""The coordinator's side of each step of an update: what it asks members for.

:class:`Leading` and :class:`~ckpt_transport.update.following.Following` name the steps alike: agree, connect, hold,
run; and where the update is staged agree, connect, run, hold, apply, decide, with keep after run where it waits for its
commit. In a warm-up dismiss comes in place of what follows connect, or run where it is staged. Which order may come
when, the table in :mod:`ckpt_transport.update.protocol` says.
"""

from __future__ import annotations

import secrets
from collections import Counter, defaultdict

from ckpt_transport.config import Config
from ckpt_transport.errors import PlanMismatchError
from ckpt_transport.execution import GatheredTimeline
from ckpt_transport.planning import Plan, Role
from ckpt_transport.update import messages as m
from ckpt_transport.update.known_descriptors import RankDescriptors, by_route, new_name
from ckpt_transport.update.membership import Membership
from ckpt_transport.update.participant import Participant
from ckpt_transport.update.progress import Progress
from ckpt_transport.update.routes import RouteNames
from ckpt_transport.update.ties import Ties


class Leading:
    """Leads each step: says it to the other members, does it for rank 0 itself, and hears the answers.

    Every method may raise what a member reported.

    Args:
        members: who takes part.
        local: rank 0's own part.
        names: of the routes that members have kept.
        config: whether digests are compared.
        resumable: the update goes on when members leave.

    Attributes:
        staged: sinks stage the version before their forward passes are held, and know each other by this word; empty
            where it is written in place.
        applying: members were told to write to what they serve, and may not be able to take that back.
        stopping: for how many seconds of a run a sink waited for its forward passes to end.
        apply_summary: how sinks have applied the version, by rank; of those that say so.
    """

    def __init__(
        self, members: Membership, local: Participant, names: RouteNames, config: Config, *, resumable: bool
    ) -> None:
        self._members, self._local, self._names, self._config = members, local, names, config
        self._update, self._resumable = members.update, resumable
        self.staged = ""
        self.applying = False
        self.stopping = 0.0
        self._lent: dict[int, RankDescriptors] = {}
        """What was said with the agreement, by those who had kept their routes, by rank and route."""
        self._connected: set[int] = set()
        """Those that have learned with the proposal what is lent."""
        self._key: tuple[str, tuple[str, ...], tuple[str, ...]] = "", (), ()
        """Of the plan: its shape, the names of its routes, its members."""
        self._name = ""
        """Of what is lent."""
        self._named = False
        """Whether the proposal says what is lent by its name alone."""
        self._changed = False
        """Whether rank 0 lends something else than in the last update."""
        self.apply_summary: dict[int, str] = {}

    def agree(self, plan: Plan) -> None:
        """Send the plan to those that do not know it, and compare the digests of all.

        Raises:
            PlanMismatchError: somebody holds another plan, or tied names have different values.
        """
        members, version = self._members, plan.manifest.version
        addresses = tuple(members.addresses)
        unknown = {rank for rank in members.others if members.joins[rank].plan != plan.shape}
        encoded = plan.encode() if unknown else b""
        names = self._names.names(plan.routes, members.joins)
        ties = Ties(members.joins, plan.manifest)
        digests = f"digests-{secrets.token_hex(8)}" if self._config.integrity == "always" else ""
        self._lent, digest, self._key = {}, "", (plan.shape, names, addresses)
        self._name, self._named, self._changed = new_name(), False, False
        lent: dict[int, dict[int, list[bytes]]] | None = None

        def propose() -> str:
            return self._local.propose(
                plan, 0, addresses, names, resumable=self._resumable, digests=digests, staged=self.staged
            )

        if not unknown:
            digest = propose()
            lent = self._lent_early(plan)
        proposals = {
            rank: m.Propose(
                update=self._update,
                plan=encoded if rank in unknown else b"",
                shape=plan.shape,
                version=version,
                rank=rank,
                addresses=addresses,
                routes=names,
                resumable=self._resumable,
                round=members.round,
                tied=ties.asked_of(rank),
                digests=digests,
                staged=self.staged,
                lent=lent,
                lent_name=self._name if self._named or lent is not None else "",
            )
            for rank in members.others
        }
        agreements = members.ask_each(proposals)
        if unknown:
            digest = propose()
        if self._named:
            if 0 not in self._lent:
                self._lent[0] = self._local.open(members.watch)
            self._changed = not self._local.connect_by_name(self._name, members.watch)
        answers = {0: self._local.digests(ties.asked_of(0))}
        self._connected = set()
        for rank, agreed in agreements().items():
            answers[rank] = agreed.tied
            if agreed.connected:
                self._connected.add(rank)
                self._lent[rank] = self._names.told.by_rank.get(rank, {}) if self._named else {}
            if agreed.descriptors is not None:
                self._lent[rank] = agreed.descriptors
            if agreed.digest != digest:
                raise PlanMismatchError(
                    f"{members.label(rank)} holds plan {agreed.digest[:16]} and rank 0 holds {digest[:16]}; "
                    "do all participants run the same version of ckpt-transport?"
                )
        ties.check(answers, version)

    def _lent_early(self, plan: Plan) -> dict[int, dict[int, list[bytes]]] | None:
        """Find out how what is lent goes with the proposal, where rank 0 has kept its routes: by the name that members
        know it by; or, where nobody else lends anything, by descriptors, for which rank 0 opens its routes now."""
        if not self._local.has_its_routes:
            return None
        told, alone = self._names.told, {leg.sender for hop in plan.hops for leg in hop.legs} == {0}
        if alone:
            self._lent = {0: self._local.open(self._members.watch)}
        name = told.name_for(self._key)
        if name and (not alone or self._lent[0] == told.by_rank[0]):
            self._name, self._named = name, True
        return by_route(self._lent) if alone and not self._named else None

    def restore(self) -> None:
        """Have every sink get ready to serve the version before."""
        sinks = {rank: self._members.addresses[rank] for rank in self._sinks}
        orders = {rank: m.Restore(self._update, rank=rank, sinks=sinks, staged=self.staged) for rank in sinks}
        self._members.ask_each(orders)()

    def connect(self) -> None:
        """Open the routes where they are not, and tell all what the senders lend, who do not know it yet. Sources fill
        the slots they have. Where all have agreed by the name of what is lent, nothing is left to do."""
        members = self._members
        opened = members.ask(m.Open(self._update), [rank for rank in members.others if rank not in self._lent])
        if 0 not in self._lent:
            self._lent[0] = self._local.open(members.watch)
        self._lent |= {rank: answer.descriptors for rank, answer in opened().items()}
        unconnected = [rank for rank in members.others if rank not in self._connected]
        if self._named:
            if not (unconnected or self._changed):
                return
            self._name, unconnected = new_name(), list(members.others)  # what they know by the other is over
        lent = by_route(self._lent)
        connected = members.ask(m.Connect(self._update, lent, self._name), unconnected)
        self._local.connect(lent, members.watch, self._name)
        connected()
        self._names.told.told(self._name, self._key, self._lent)

    def hold(self) -> None:
        """Stop the forward passes of every sink; of one engine's sinks before the same one. One that stops as it runs
        does so later."""
        members, sinks = self._members, self._sinks
        if self._stops_as_it_runs:
            return
        ranks_of = Counter(members.joins[rank].engine for rank in sinks)
        together = [rank for rank in sinks if members.joins[rank].engine and ranks_of[members.joins[rank].engine] > 1]
        stood = members.ask(m.Stand(self._update), set(sinks).difference(together))
        held = members.ask(m.Hold(self._update), together)
        engines: defaultdict[str, dict[int, int]] = defaultdict(dict)
        for rank, answer in held().items():
            engines[members.joins[rank].engine][rank] = answer.forwards
        still = members.ask_each(
            {
                rank: m.Advance(self._update, max(forwards.values()))
                for forwards in engines.values()
                for rank in forwards
            }
        )
        stood()
        still()

    @property
    def _sinks(self) -> list[int]:
        return [rank for rank, join in enumerate(self._members.joins) if join.role is Role.SINK]

    @property
    def _stops_as_it_runs(self) -> bool:
        """Whether one word has the only sink stand still and run: it waits for no other one to stand still."""
        return not (self.staged or self._resumable) and len(self._sinks) == 1

    def keep(self, seconds: float) -> None:
        """Have everybody wait for the commit, for so long at most."""
        self._members.ask(m.Keep(self._update, seconds=seconds), self._members.others)()

    def dismiss(self) -> None:
        """Have everybody leave the update and keep what was found out."""
        dismissed = self._members.ask(m.Dismiss(self._update), self._members.others)
        self._local.dismiss()
        dismissed()

    def dismiss_surely(self, timeout: float) -> tuple[bool, BaseException | None]:
        """The same where all wait, and the turn may be over; whether all have left, and an interrupt that came."""
        members = self._members
        interrupt = members.tell_surely(m.Dismiss(self._update), members.others)
        interrupt = members.hear_each(members.has_ended, members.others, timeout, interrupt)
        if not all(members.addresses[rank] in members.dismissed for rank in members.others):
            return False, interrupt
        self._local.dismiss()
        return True, interrupt

    def apply(self) -> None:
        """Have every sink exchange what it has staged and what it serves. Whatever fails is taken back everywhere."""
        self._members.ask(m.Apply(self._update), self._sinks)()

    def decide(self, timeout: float) -> BaseException | None:
        """Tell every sink that all have applied, and wait until those that live have heard it.

        From the first word on the update goes forward, whoever leaves. An interrupt is kept and returned.
        """
        members = self._members
        interrupt = members.tell_surely(m.Decide(self._update), self._sinks)

        def has_heard(rank: int) -> bool:
            return members.has_said(m.Decided, rank) or members.has_ended(rank)

        return members.hear_each(has_heard, self._sinks, timeout, interrupt)

    def run(self, plan: Plan, progress: Progress) -> GatheredTimeline:
        """Run the plan everywhere; the timeline of all ranks.

        Args:
            plan: the one that all have agreed to.
            progress: told about the bytes that rank 0 has sent.
        """
        total = sum(bucket.nbytes for bucket in plan.buckets if plan.owner(bucket) == 0)
        done = 0

        def sent(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            progress(min(done, total), total)

        members = self._members
        self.applying = not self.staged
        stopping = self._sinks if self._stops_as_it_runs else []
        orders: dict[int, m.Order[m.Ran]] = {rank: m.Run(self._update) for rank in members.others}
        orders |= {rank: m.StandAndRun(self._update) for rank in stopping}
        ran = members.ask_each(orders)
        events = self._local.run(members.watch, sent)
        answers = ran()
        self.stopping = max((answers[rank].stopping for rank in stopping), default=0.0)
        self.apply_summary |= {rank: each.apply_summary for rank, each in answers.items() if each.apply_summary}
        members.watch()
        return GatheredTimeline(events, {rank: answer.events for rank, answer in answers.items()})
