"""A source sends what has changed to sinks that serve what it has brought before, and everything to others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch

from ckpt_transport import dtypes
from ckpt_transport.checkpoint import Store, StoredVersion
from ckpt_transport.config import Config
from ckpt_transport.deltas import Differences
from ckpt_transport.errors import (
    DeltaRefusedError,
    SharedMemoryError,
    SupersededError,
    UpdateAbortedError,
)
from ckpt_transport.memory import Backing
from ckpt_transport.planning import ServedShares
from ckpt_transport.service.base import BroughtVersions
from ckpt_transport.service.compared import Identity, identity_of, why_not_compared, writes_to
from ckpt_transport.service.comparison import Comparison, TooDenseError
from ckpt_transport.service.delta_costs import DeltaCosts
from ckpt_transport.service.led_update import Leader, LedUpdate
from ckpt_transport.service.other_sources import NoDeltaError, OtherSources
from ckpt_transport.service.sent import Sent, everything
from ckpt_transport.service.served_bases import ServedBases, asked
from ckpt_transport.update.coordinator import REFUSALS
from ckpt_transport.update.invitations import Invitees
from ckpt_transport.update.phases import PhaseClock
from ckpt_transport.update.report import DeltaSummary, Report
from ckpt_transport.update.turn import Turn

NO_MEMORY = (torch.OutOfMemoryError, MemoryError)
logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class DeltaSource:
    """Decides what each update of a server sends, and keeps what the next one is compared with.

    Args:
        store: holds versions and carriers.
        brought: what sinks have got from here.
        forget: undoes the registration of memory with transports.
        config: settings.
    """

    def __init__(
        self, store: Store, brought: BroughtVersions, forget: Callable[[Sequence[Backing]], None], config: Config
    ) -> None:
        self._store, self._brought, self._forget, self._config = store, brought, forget, config
        self._costs = DeltaCosts()
        self._comparison = Comparison(config.bucket_bytes)
        self._carried: StoredVersion | None = None
        """What this rank has offered to an update that rank 0 leads."""
        self._unended = False
        """A delta was sent, and nobody has said that it is served."""
        self._last: Identity = None, ()
        """What was brought last, and how often torch has written to its memory then."""
        self._followed = ""
        """The update that has brought it, where rank 0 has led that."""

    # -- an update ----------------------------------------------------------------------------------------------

    def bring(
        self,
        stored: StoredVersion,
        invitees: Invitees,
        others: OtherSources | None,
        clock: PhaseClock,
        turn: Turn,
        lead: Callable[[StoredVersion, Invitees], LedUpdate[Leader]],
        act: Callable[[LedUpdate[Leader]], Result],
    ) -> Result:
        """Lead an update that sends the difference to what all sinks serve, or everything.

        Where a sink refuses the difference before anything has changed, everything is sent by a second update.

        Args:
            stored: the version.
            invitees: who takes part.
            others: the other source ranks; None where there are none.
            clock, turn: of the caller's call.
            lead: begins an update.
            act: carries it out.
        """
        sent = self._choose(stored, invitees, others, clock, turn)
        try:
            return self._act(sent, stored, invitees, lead, act)
        except SupersededError:
            self._unended = False
            raise
        except UpdateAbortedError as error:
            if not (sent.is_delta and isinstance(error.__cause__, REFUSALS)):
                raise
            sent = everything(stored, str(error.__cause__))
            logger.warning("'%s' is sent whole: %s", stored.manifest.version, error.__cause__)
        return self._act(sent, stored, invitees, lead, act)

    def _act(
        self,
        sent: Sent,
        stored: StoredVersion,
        invitees: Invitees,
        lead: Callable[[StoredVersion, Invitees], LedUpdate[Leader]],
        act: Callable[[LedUpdate[Leader]], Result],
    ) -> Result:
        try:
            self._unended = sent.is_delta
            led = lead(sent.stored, sent.to(invitees))
            led.note = partial(self._succeeded, sent, identity_of(stored))
            return act(led)
        finally:
            if sent.is_delta:
                self._forget(sent.stored.extents)
                self._store.carriers.let_go(sent.stored)
            else:
                self._store.carriers.free()

    # -- an update that rank 0 leads ----------------------------------------------------------------------------

    def holds(self, stored: StoredVersion) -> str:
        """The update that has brought what a version can be compared with here; empty for none."""
        return "" if self._base_followed(stored) is None else self._followed

    def offered(self, stored: StoredVersion, base_update: str, served: ServedShares) -> StoredVersion:
        """What of a version is brought: its difference to what that update has brought, else everything.

        Args:
            stored: the version.
            base_update: the update; empty for everything.
            served: what sinks serve of it.
        """
        self.let_go_of_carriers()
        base = self._base_followed(stored)
        if base is None or not base_update or base_update != self._followed:
            return stored
        try:
            found = self._comparison.all(base, stored, served)
            self._carried = self._store.carriers.carry(stored, base.manifest.version, found)
        except SharedMemoryError as error:
            logger.warning(
                "'%s' is sent whole: there is no memory for what differs: %s", stored.manifest.version, error
            )
            return stored
        except DeltaRefusedError as error:
            logger.warning("'%s' is sent whole: %s", stored.manifest.version, error)
            return stored
        except NO_MEMORY as error:
            logger.warning("'%s' is sent whole, and its base let go of: %s", stored.manifest.version, error)
            self.let_go()
            return stored
        return self._carried

    def followed(self, version: Identity, update: str) -> None:
        """Rank 0 has led an update of that name to its end, which has brought a version as it was when it began."""
        self._last, self._followed = version, update

    def let_go_of_carriers(self) -> None:
        """Nothing that was offered is sent any more."""
        carried, self._carried = self._carried, None
        if carried is not None:
            self._forget(carried.extents)
            self._store.carriers.let_go(carried)

    def _base_followed(self, stored: StoredVersion) -> StoredVersion | None:
        content, writes = self._last
        base = None if content is None else self._store.with_content(content)
        if base is None or not self._followed or base is stored:
            return None
        return base if writes_to(base) == writes and not why_not_compared(base, stored) else None

    def _succeeded(self, sent: Sent, what: Identity, report: Report) -> Report:
        self._unended, self._last = False, what
        if not sent.is_delta:
            self._costs.sent_everything(report)
            return replace(report, delta=sent.summary)
        self._costs.sent_delta(report, sent.summary.found)
        return replace(report, delta=_of_all_sources(sent.summary, report))

    # -- what is sent -------------------------------------------------------------------------------------------

    def _choose(
        self, stored: StoredVersion, invitees: Invitees, others: OtherSources | None, clock: PhaseClock, turn: Turn
    ) -> Sent:
        if invitees.base:
            return everything(stored, f"it brings some tensors, and '{invitees.base}' has the others")
        try:
            return self._delta(stored, invitees.sinks, others, clock, turn)
        except NoDeltaError as why:
            return everything(stored, str(why))._replace(silent=why.silent)
        except DeltaRefusedError as why:
            return everything(stored, str(why))
        except SharedMemoryError as error:
            return everything(stored, f"there is no memory for what carries the difference: {error}")
        except NO_MEMORY as error:
            self.let_go()
            return everything(stored, f"there is no memory to compare it: {error}")
        finally:
            clock.enter("begin")

    def _delta(
        self,
        stored: StoredVersion,
        sinks: Sequence[str],
        others: OtherSources | None,
        clock: PhaseClock,
        turn: Turn,
    ) -> Sent:
        base = self._base(stored, sinks)
        name = base.manifest.version
        if self._config.delta == "auto" and (why := self._costs.why_everything()):
            raise NoDeltaError(why)
        updates = self._brought.updates(name, sinks)

        def compare(bases: ServedBases) -> tuple[Differences, StoredVersion, Mapping[str, str]]:
            def check() -> None:
                turn.check()
                bases.check()

            with _all_differ(others, updates, bases):
                clock.enter("diff")
                ahead = self._comparison.ahead(base, stored, check)
                clock.enter("base")
                served, modules = bases.shares(), bases.modules()
                clock.enter("diff")
                differences = self._comparison.completed(ahead, base, stored, served, modules, turn.check)
                carried = self._store.carriers.carry(stored, name, differences)
                clock.enter("begin")
                return differences, carried, modules

        clock.enter("base")
        try:
            differences, carried, modules = asked(name, updates, self._config, compare)
        except TooDenseError as why:
            self._costs.too_dense(str(why))
            raise
        summary = DeltaSummary(
            name,
            "",
            stored.manifest.nbytes,
            carried.manifest.nbytes,
            differences.elements,
            differences.changed,
            clock.phases["diff"],
            modules,
        )
        return Sent(carried, summary, updates)

    def _base(self, stored: StoredVersion, sinks: Sequence[str]) -> StoredVersion:
        """What all sinks have got last, if a version can be compared with it.

        Raises:
            NoDeltaError: it cannot.
        """
        if self._unended:
            raise NoDeltaError("the delta before was not committed")
        content, (last, writes) = self._brought.content_of(sinks), self._last
        base = None if content is None else self._store.with_content(content)
        if base is None or content is not last:
            raise NoDeltaError("this server does not hold what all of these sinks have got from it last")
        if base is stored:
            raise NoDeltaError(f"'{stored.manifest.version}' is what they have got from this server last")
        if writes_to(base) != writes:
            raise NoDeltaError(f"somebody has written to '{base.manifest.version}' since it was brought")
        if why := why_not_compared(base, stored):
            raise NoDeltaError(why)
        return base

    # -- the base of the next one -------------------------------------------------------------------------------

    def keep(self, version: str) -> bool:
        """A version that was published is the base of the next one, or a copy of it is, where it lies elsewhere.

        The base before is not needed any more.

        Returns: whether there was memory for a copy.
        """
        self._forget(() if self._store.kept is None else self._store.kept.extents)
        stored = self._store.get(version)
        device = stored.made_on
        if device is None:
            if len(stored.buffers) == len(stored.extents):
                self._store.keep(version)
            return True
        try:
            kept = self._store.keep_copy(version, device)
        except NO_MEMORY as error:
            logger.warning("'%s' is not kept to be compared with the next version: %s", version, error)
            return False
        except Exception as error:  # sinks serve the version by now, whatever becomes of the copy
            logger.warning("'%s' is not compared with the next version: %s", version, error)
            return True
        self._last = identity_of(kept)
        return True

    def let_go_unless_served(self) -> None:
        """Free what was kept, if no sink is known to serve it."""
        kept = self._store.kept
        if kept is not None and not self._brought.has_brought(kept.content):
            self.let_go()

    def let_go(self) -> bool:
        """Free what was kept; whether there was something."""
        kept = self._store.kept
        if kept is not None:
            self._forget(kept.extents)
            self._store.let_go_of_kept()
        return kept is not None


@contextmanager
def _all_differ(others: OtherSources | None, updates: Mapping[str, str], bases: ServedBases) -> Iterator[None]:
    """Within the block the other source ranks find what differs, too. Where it fails, they bring everything.

    Raises:
        NoDeltaError: one of them cannot.
    """
    if others is None:
        yield
        return
    if len(brought := set(updates.values())) != 1:
        raise NoDeltaError("these sinks have got it by several updates, and other source ranks know one")
    (update,) = brought
    others.check_hold(update)
    served = bases.shares()
    others.tell(update, served)
    try:
        yield
    except (NoDeltaError, DeltaRefusedError, SharedMemoryError, *NO_MEMORY):
        others.tell("", served)
        others.hear()
        raise
    try:
        others.hear()
    except NoDeltaError:  # who is late is waited for once more, when all gather
        others.tell("", served)
        raise


def _of_all_sources(mine: DeltaSummary, report: Report) -> DeltaSummary:
    """What the report says of all source ranks, of which rank 0 knows its own part."""
    deltas, nbytes = report.plan.manifest.deltas, report.plan.manifest.nbytes
    if len(deltas) == 1:
        return mine
    tensors = [tensor for delta in deltas for tensor in delta.tensors]
    return replace(
        mine,
        version_nbytes=sum(tensor.nbytes for tensor in tensors),
        sent_nbytes=nbytes,
        elements=sum(tensor.nbytes // dtypes.alignment(tensor.spec.dtype) for tensor in tensors),
        changed=sum(carrier.count for delta in deltas for carrier in delta.carriers),
    )
