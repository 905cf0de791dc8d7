"""This module chooses and checks the sinks that an update is for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ckpt_transport.config import Config
from ckpt_transport.control import addresses
from ckpt_transport.errors import ConfigError, JoinError
from ckpt_transport.service.query import ask_version
from ckpt_transport.service.sink_handles import AnySink, LocatedSinks, check_list, locate


class SinkChoice:
    """Chooses the sinks of an update, and finds where they are.

    Args:
        config: names those that are updated by default.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def named(self, sinks: Sequence[AnySink] | None) -> tuple[AnySink, ...]:
        """Those of the call, or of the configuration; raises as :func:`check_list`."""
        if sinks is None:
            return self._config.sinks
        check_list(sinks)
        return tuple(sinks)

    def all_of(self, sinks: Sequence[AnySink] | None) -> LocatedSinks:
        """
        Args:
            sinks: of the call; None for those of the configuration.

        Raises:
            ConfigError: they make no sense.
        """
        located = locate(self.named(sinks), self._config)
        check_sinks(located.addresses)
        return located

    def some_of(self, sinks: Sequence[AnySink] | None, ranks: Sequence[int] | None) -> LocatedSinks:
        """
        Args:
            sinks: as those of :meth:`all_of`.
            ranks: counts those that are updated, from 0; None for all.

        Raises:
            ConfigError: they make no sense, or an engine would be updated in part.
        """
        everybody = self.named(sinks)
        some = self.all_of(everybody if ranks is None else chosen(everybody, ranks))
        if len(some.addresses) < len(everybody):
            check_engines(self.all_of(everybody).addresses, some.addresses, self._config)
        return some


def check_sinks(sinks: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: there are none, one is named twice, or one is no address.
    """
    if not sinks:
        raise ConfigError(
            "an update needs sinks: pass their addresses (update --sink ADDRESS, rollback ADDRESS), or set sinks"
        )
    if len(set(sinks)) != len(sinks):
        raise ConfigError(f"the same sink is named twice in {', '.join(sinks)}")
    for address in sinks:
        addresses.check(address)


def chosen(sinks: Sequence[AnySink], ranks: Sequence[int]) -> tuple[AnySink, ...]:
    """Choose those of ``sinks`` that ``ranks`` count, from 0.

    Raises:
        ConfigError: there is no sink of such a rank, or one is counted twice, or none.
    """
    wrong = [rank for rank in ranks if not 0 <= rank < len(sinks)]
    if wrong or not ranks or len(set(ranks)) != len(ranks):
        raise ConfigError(
            f"ranks {', '.join(map(str, ranks)) or 'of nobody'} were asked for, and there are {len(sinks)} sinks: "
            f"choose some of 0 to {len(sinks) - 1}, each once"
        )
    return tuple(sinks[rank] for rank in ranks)


def check_engines(sinks: Sequence[str], chosen: Sequence[str], config: Config) -> None:
    """Check that no engine is updated in part, which would leave it with two versions.

    Raises:
        ConfigError: ranks of one engine are chosen and others are not; names them.
        JoinError: one that is chosen does not answer.
    """
    engines = {address: ask_version(address, config, config.join_timeout).engine for address in chosen}
    if not any(engines.values()):
        return
    for address in set(sinks).difference(chosen):
        with suppress(JoinError):
            engine = ask_version(address, config).engine
            for one, other in engines.items():
                if engine and engine == other:
                    raise ConfigError(
                        f"{one} and {address} are ranks of one engine ({engine}), and only the first is to be updated; "
                        "name all ranks of an engine, or none"
                    )
