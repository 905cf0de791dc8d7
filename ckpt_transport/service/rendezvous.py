"""Source ranks find each other here, and hear why one of them does not come."""

from __future__ import annotations

import itertools
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TypeVar

import msgspec
from torch._C._distributed_c10d import TCPStore

from ckpt_transport.config import Config
from ckpt_transport.decoding import UNREADABLE, prepared
from ckpt_transport.errors import ConfigError, JoinError
from ckpt_transport.reasons import named_reason
from ckpt_transport.service.lead_tokens import is_past
from ckpt_transport.service.torch_store import Answer, Recheck, SharedStore, Wait, wait_only
from ckpt_transport.service.world import World
from ckpt_transport.update.source_arrivals import given_up_by_rank_0

SWIFT_SECONDS, SLOW_SECONDS = 0.002, 0.1
"""How often it is looked whether rank 0 leads an update, where it does not call: at first, and when that takes long."""
TELL_SECONDS = 5.0
"""After so long it is said who is waited for."""
MOST_VERSIONS = 100
"""Of so many versions it is remembered that rank 0 was found for them, the latest."""
ABSENCE_SECONDS = 5.0
"""For so long a rank that has failed looks for others to tell."""
logger = logging.getLogger(__name__)
_numbers = itertools.count()
"""Tells apart the servers that a process makes one after the other; all ranks make the same ones."""


class Rendezvous(ABC):
    """Lets source ranks meet. Every method ends within ``join_timeout``, except :meth:`find`."""

    @abstractmethod
    def leading(
        self, version: str, given_up: Mapping[str, str], token: str
    ) -> AbstractContextManager[Callable[[str], None]]:
        """Within the block, rank 0 leads an update; others are told if it fails.

        Args:
            version: of the update.
            given_up: other versions, which rank 0 has given up, and why; others may come for them later.
            token: the next one of this rank.

        Yields: what tells them the coordinator's address, those that were not called.
        """

    @abstractmethod
    def find(self, version: str, given_up: Collection[str] = (), wait: Wait = wait_only) -> str:
        """Wait until rank 0 leads an update to ``version``; the coordinator's address.

        Where it leads an update to another version, it is to hear what this rank has asked for, so that both know.

        Args:
            version: of the update.
            given_up: other versions, of which this rank has told its absence: rank 0 may not have noticed yet.
            wait: waits, and hears rank 0 when it calls those who wait.

        Raises:
            JoinError: it does not within ``update_timeout``, it has given up, or a rank does not take part.
        """

    @abstractmethod
    def tell_absence(self, version: str, reason: str) -> None:
        """Tell the others why this rank takes no part in updates to ``version``; an empty reason takes that back.

        An empty version means all of them.
        """

    @property
    @abstractmethod
    def needs_calls(self) -> bool:
        """Whether those who wait find sooner that rank 0 leads an update when it calls them."""

    @abstractmethod
    def was_called(self, version: str, token: str) -> None:
        """Rank 0 leads an update to ``version``, and has told this rank so by itself.

        Args:
            version: of the update.
            token: as that of :meth:`leading`.
        """

    @abstractmethod
    def has_met(self, version: str) -> bool:
        """Whether this rank has found rank 0 for that version, or has heard why not."""

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether the others can be told something at once, as somebody does who was interrupted."""

    @abstractmethod
    def absent(self, version: str) -> dict[int, str]:
        """The ranks that have said that they do not take part, and why."""


class AtAddress(Rendezvous):
    """Meets at an address that all know. Ranks tell the coordinator there what they have to say.

    What a rank says before rank 0 leads its first update arrives only if the rank lives until then.

    Args:
        address: where rank 0 listens, once it leads an update.
        send: tells it there that this rank takes no part, and why.
    """

    def __init__(self, address: str, send: Callable[[str, str], None]) -> None:
        self._address, self._send = address, send

    @contextmanager
    def leading(self, version: str, given_up: Mapping[str, str], token: str) -> Iterator[Callable[[str], None]]:
        yield lambda address: None

    def find(self, version: str, given_up: Collection[str] = (), wait: Wait = wait_only) -> str:
        return self._address

    @property
    def needs_calls(self) -> bool:
        return False

    def tell_absence(self, version: str, reason: str) -> None:
        self._send(version, reason)

    def was_called(self, version: str, token: str) -> None:
        """Do nothing: it is where it always is."""

    def has_met(self, version: str) -> bool:
        return True

    @property
    def is_open(self) -> bool:
        return True

    def absent(self, version: str) -> dict[int, str]:
        return {}


class LeadNotice(msgspec.Struct, frozen=True):
    """Says that rank 0 leads an update.

    Attributes:
        token: of the update.
        address: of the coordinator; empty when it was given up before there was one.
        failure: why it was given up; empty before that.
        given_up: other versions that rank 0 has given up, and why.
    """

    token: str
    version: str
    address: str = ""
    failure: str = ""
    given_up: dict[str, str] = msgspec.field(default_factory=dict)


class AbsenceNotice(msgspec.Struct, frozen=True):
    """Says why a source rank takes no part in updates to ``version`` (empty: in any); with no reason it does again."""

    rank: int
    version: str
    reason: str


Notice = TypeVar("Notice", LeadNotice, AbsenceNotice)


def _read(said: bytes, kind: type[Notice]) -> Notice:
    """
    Raises:
        JoinError: it is something else: another program uses the same keys of that store.
    """
    try:
        return msgspec.json.decode(said, type=prepared(kind))
    except UNREADABLE as error:
        raise JoinError(
            f"torch's store holds what no source rank has said ({error}); is another program, or another version of "
            "ckpt-transport, using it?"
        ) from error


class InStore(Rendezvous):
    """Meets in torch's store at ``MASTER_ADDR`` and ``MASTER_PORT``: torchrun's, a trainer's, else one of rank 0's.

    Raises:
        ConfigError: these variables are missing, or do not name a port.
    """

    def __init__(self, world: World, config: Config) -> None:
        host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
        if not host or not port.isascii() or not port.isdigit() or int(port) >= 1 << 16:
            raise ConfigError(
                f"{world.size} sources must find each other: start them with torchrun, which sets MASTER_ADDR and "
                f"MASTER_PORT, or set 'coordinator' to an address that source rank 0 can listen on; {world.expectation}"
            )
        self._world, self._config = world, config
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._store = SharedStore(
            host, int(port), may_listen=world.rank == 0 and not agent, hint=f"is it running? {world.expectation}"
        )
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives the ranks
        prefix = f"ckpt_transport/{restarts}/{next(_numbers)}"
        self._lead_key, self._absent_key = f"{prefix}/lead", f"{prefix}/absent"
        self._seen, self._met = "", dict[str, None]()
        self._absences: dict[int, AbsenceNotice] = {}
        """By number. Two threads may read the same one: the first goes on for a moment when nobody waits for it."""
        self._heard: set[int] = set()
        """Absences from one version that were heard of here. Who asks for it again waits for that rank again."""

    @contextmanager
    def leading(self, version: str, given_up: Mapping[str, str], token: str) -> Iterator[Callable[[str], None]]:
        lead = LeadNotice(token, version, given_up=dict(given_up))

        def announce(address: str) -> None:
            self._set(msgspec.structs.replace(lead, address=address))

        try:
            yield announce
        except BaseException as error:
            with suppress(JoinError):
                if isinstance(error, Exception) or self.is_open:
                    self._set(msgspec.structs.replace(lead, failure=named_reason(error)))
            raise

    def _set(self, lead: LeadNotice) -> None:
        said = msgspec.json.encode(lead).decode()
        self._ask(lambda store: store.set(self._lead_key, said))

    def tell_absence(self, version: str, reason: str) -> None:
        said = msgspec.json.encode(AbsenceNotice(self._world.rank, version, reason)).decode()

        def say(store: TCPStore) -> LeadNotice | None:
            store.set(f"{self._absent_key}/{store.add(self._absent_key, 1)}", said)
            return self._lead(store)

        lead = self._ask(say, ABSENCE_SECONDS)
        if not reason and lead is not None and lead.failure and lead.version == version:
            self._seen = lead.token  # rank 0 has given up what this rank had given up

    def _lead(self, store: TCPStore) -> LeadNotice | None:
        """What rank 0 has said last."""
        return _read(store.get(self._lead_key), LeadNotice) if store.check([self._lead_key]) else None

    def was_called(self, version: str, token: str) -> None:
        self._seen = token
        self._meet(version)

    def has_met(self, version: str) -> bool:
        return version in self._met

    @property
    def is_open(self) -> bool:
        return self._store.is_open

    def absent(self, version: str) -> dict[int, str]:
        absences = map(self._hear, self._ask(lambda store: self._absent(store, version)))
        return {absence.rank: absence.reason for absence in absences}

    def _ask(self, act: Callable[[TCPStore], Answer], patience: float = float("inf")) -> Answer:
        patience = min(patience, self._config.join_timeout)
        try:
            return self._store.ask(lambda store, _: act(store), patience, patience)
        except TimeoutError as error:
            raise JoinError(
                f"torch's store does not answer within {patience:g} s; {self._world.expectation}"
            ) from error

    def _absent(self, store: TCPStore, version: str) -> list[int]:
        """The numbers of what was said by those who take no part, and was not heard of yet."""
        while store.check([f"{self._absent_key}/{(number := len(self._absences) + 1)}"]):
            self._absences[number] = _read(store.get(f"{self._absent_key}/{number}"), AbsenceNotice)
        notices = [self._absences[number] for number in range(1, len(self._absences) + 1)]
        latest = {notice.rank: number for number, notice in enumerate(notices, 1) if notice.version in ("", version)}
        return [number for number in latest.values() if self._absences[number].reason and number not in self._heard]

    def _hear(self, number: int) -> AbsenceNotice:
        absence = self._absences[number]
        if absence.version:
            self._heard.add(number)
        return absence

    @property
    def needs_calls(self) -> bool:
        return True

    def find(self, version: str, given_up: Collection[str] = (), wait: Wait = wait_only) -> str:
        patience = self._config.update_timeout
        deadline = time.monotonic() + patience
        for until in (min(TELL_SECONDS, patience), patience):
            left = min(until, deadline - time.monotonic())
            try:
                lead = self._store.ask(
                    lambda store, recheck: self._wait(store, version, given_up, recheck),
                    self._config.join_timeout,
                    left,
                    wait,
                )
            except TimeoutError:
                logger.warning(
                    "waiting up to %.0f s more for source rank 0 to lead an update to '%s'; %s",
                    max(deadline - time.monotonic(), 0.0),
                    version,
                    self._world.expectation,
                )
                continue
            met_before = self._meet(version)
            if isinstance(lead, int):
                absence = self._hear(lead)
                raise JoinError(
                    f"source rank {absence.rank} takes no part in the update to '{version}': {absence.reason}"
                )
            if lead.version != version and version in lead.given_up and not met_before:
                raise JoinError(given_up_by_rank_0(version, lead.given_up[version]))
            self._seen = lead.token
            self._meet(lead.version)
            if lead.failure:
                raise JoinError(given_up_by_rank_0(version, lead.failure))
            return lead.address
        raise JoinError(
            f"source rank 0 did not lead an update to '{version}' within {patience:g} s (update_timeout); "
            f"{self._world.expectation}"
        )

    def _meet(self, version: str) -> bool:
        """This rank knows what becomes of that version; whether it did before."""
        met_before = version in self._met
        self._met[version] = None
        for late in list(self._met)[:-MOST_VERSIONS]:
            del self._met[late]
        return met_before

    def _wait(self, store: TCPStore, version: str, given_up: Collection[str], recheck: Recheck) -> LeadNotice | int:
        """What rank 0 says of the update it leads, or the number of an absence."""
        pause = SWIFT_SECONDS
        while not recheck.over:
            for number in self._absent(store, version):
                return number
            if (lead := self._lead(store)) is not None:
                given_up_there = version in lead.given_up and version not in self._met
                known = is_past(lead.token, self._seen) or (lead.version in given_up and not lead.failure)
                if not known and (lead.version == version or given_up_there or not lead.failure):
                    return lead
            recheck.pause(pause)
            pause = min(2 * pause, SLOW_SECONDS)
        raise TimeoutError
