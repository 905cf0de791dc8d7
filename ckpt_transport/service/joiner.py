"""A joiner brings engines to a version that others hold."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox, addresses
from ckpt_transport.errors import ConfigError
from ckpt_transport.history import check_history
from ckpt_transport.paths import paths_of
from ckpt_transport.service import questions as q
from ckpt_transport.service.address_file import AddressFile, combine
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.interrupted import explained
from ckpt_transport.service.sink_handles import AnySink, locate
from ckpt_transport.service.trace import check_trace, keep_trace
from ckpt_transport.service.watched import let_watch
from ckpt_transport.transports import registry
from ckpt_transport.update import messages as m
from ckpt_transport.update.available import check_known, states
from ckpt_transport.update.challenges import Welcomes
from ckpt_transport.update.introduction import Introducer
from ckpt_transport.update.invitations import Invitees
from ckpt_transport.update.mailbox import in_mailbox
from ckpt_transport.update.p2p_coordinator import P2PCoordinator
from ckpt_transport.update.phases import PhaseClock
from ckpt_transport.update.plan_cache import PlanCache
from ckpt_transport.update.progress import Progress
from ckpt_transport.update.report import Report
from ckpt_transport.update.routes import RouteNames, RouteTable
from ckpt_transport.update.turn import Turn


class Joiner:
    """Leads updates from holders to sinks, by P2P, and holds no byte itself.

    All holders send at once, each its share, and sinks pass on to each other where that is faster. Engines that are not
    named are not touched. Who dies on the way is left out and named in the report. Any thread may call; updates are
    made one after the other.

    Args:
        files: where holders can be found, each saved by ``ckpt-transport serve``; all of one version.
        config: by default from the environment.

    Raises:
        ConfigError: a file is missing, damaged, of another version than the others, or of a host that is out of reach.
    """

    def __init__(self, files: Sequence[Path], config: Config | None = None) -> None:
        self._call_guard = CallGuard("Joiner")
        self.config = Config.given(config)
        let_watch(self.config)
        paths = paths_of(files, ConfigError)
        self._found = combine([(str(path), AddressFile.load(path, self.config)) for path in paths])
        self._where = ", ".join(map(str, paths))

    @property
    def rank(self) -> int:
        """0: it leads, and nobody follows."""
        return 0

    @property
    def version(self) -> str:
        """What the holders hold."""
        return self._found.version

    def update(
        self,
        version: str,
        sinks: Sequence[AnySink] | None = None,
        progress: Progress | None = None,
        before_hold: Callable[[], None] | None = None,
    ) -> Report:
        """Bring ``version`` to the sinks.

        Args:
            version: the one that the holders hold.
            sinks: as those of :meth:`ParameterServer.update`.
            progress: told when all bytes have arrived.
            before_hold: as in :meth:`ParameterServer.update`.

        Raises:
            ConfigError: the holders hold another version, or there are no sinks.
            UpdateAbortedError: it failed and every sink serves what it did before.
            TaintedError: it failed half-way; names the sinks that must not serve.
            UsageError: another process made the joiner, or another call has not ended within ``update_timeout``.
            KeyboardInterrupt: as :meth:`ParameterServer.update`.
        """
        call = f"update('{version}')"

        def lead(turn: Turn, clock: PhaseClock) -> Report:
            located = locate(self.config.sinks if sinks is None else sinks, self.config)
            invited = located.addresses
            if version != self._found.version:
                raise ConfigError(f"version '{version}' is asked for, and {self._where} is of '{self._found.version}'")
            if not invited or len(set(invited)) != len(invited):
                raise ConfigError(f"name the sinks that are to join, each once; named: {', '.join(invited) or 'none'}")
            check_known(self.config)
            check_trace(self.config)
            check_history(self.config.history)
            holders = tuple(holder.address for holder in self._found.holders)
            everybody = [addresses.check(address) for address in (*invited, *holders)]
            listen = self.config.coordinator or addresses.place_for(everybody, self.config.interface)

            def lead_in(mailbox: Mailbox) -> Report:
                for address in (*invited, *holders):
                    mailbox.check(address)
                table = RouteTable(mailbox, lambda name: registry.make(name, self.config.transports))
                update = secrets.token_hex(8)
                join = Introducer(self.config).of_leader(self.version, states(self.config))
                plans, names, welcomes = PlanCache(self.config.memory_budget), RouteNames(), Welcomes()
                coordinator = P2PCoordinator(
                    update, mailbox, self.config, table, names, plans, (), clock, turn, welcomes
                )
                try:
                    return coordinator.lead(
                        msgspec.structs.replace(join, update=update),
                        Invitees(1, invited, holders, self._objection, gone=located.gone),
                        progress,
                        before_hold,
                    )
                finally:
                    for address in (*invited, *holders):
                        mailbox.send(address, m.Goodbye(nonce=coordinator.nonces.get(address, "")))
                    table.close()

            report = in_mailbox(listen, q.COORDINATOR, self.config, lead_in)
            keep_trace(report, self.config)
            return report

        def update(turn: Turn) -> Report:
            with PhaseClock() as clock:
                return self._call_guard.one(call, self.config.update_timeout, lambda: lead(turn, clock))

        return explained(call, update)

    def _objection(self, join: m.Join) -> str:
        """Why a holder is not what the file says."""
        held = join.manifest
        if held is not None and (held.version, held.fingerprint) == (self._found.version, self._found.fingerprint):
            return ""
        return (
            f"it holds other weights than {self._where} says; the file is stale or was changed: use the one that the "
            "holder wrote last"
        )
