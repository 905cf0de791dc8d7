"""This module chooses and checks the sinks that an update is for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ckpt_transport.config import Config
from ckpt_transport.control import addresses
from ckpt_transport.errors import ConfigError, JoinError
from ckpt_transport.service.query import ask_version
from ckpt_transport.service.sink_handles import AnySink


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
    engines = {address: ask_version(address, config).engine for address in chosen}
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
