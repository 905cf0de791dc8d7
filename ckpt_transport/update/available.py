"""This module says which transports are worth trying, and which of them can run here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from ckpt_transport.config import Config
from ckpt_transport.errors import PluginError, TransportConflictError, TransportNotFoundError, TransportUnavailableError
from ckpt_transport.planning import AUTO, transports_of
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Availability


def wanted(config: Config) -> tuple[str, ...]:
    """Name the transports that are worth probing for an update."""
    return registry.names() if config.transport == AUTO else transports_of(config.transport)


def states_of(names: Iterable[str]) -> dict[str, Availability]:
    """Look at transports that somebody else has named: one that is not installed is not available."""
    return {name: _state(name) for name in names}


def _state(name: str) -> Availability:
    try:
        return registry.seen(name)
    except TransportNotFoundError:
        return Availability(False, "it is not installed here")
    except TransportConflictError as error:
        return Availability(False, str(error))


def states(config: Config) -> dict[str, Availability]:
    """Look at each transport that is worth probing here."""
    return {name: registry.seen(name) for name in wanted(config)}


def look_at_all() -> None:
    """Import and probe every transport before anybody can invite, who would wait for it.

    What is wrong with one is said when it is asked for.
    """
    for name in registry.names():
        with suppress(PluginError):
            registry.seen(name)


def check_known(config: Config) -> None:
    """
    Raises:
        TransportNotFoundError: a transport that was asked for is not installed.
    """
    if config.transport != AUTO:
        for name in wanted(config):
            registry.load(name)


def check(config: Config) -> None:
    """
    Raises:
        TransportNotFoundError, TransportUnavailableError: a transport that was asked for cannot run here.
    """
    if config.transport == AUTO:
        return
    for name in wanted(config):
        registry.load(name)
        state = registry.seen(name)
        if not state.ok:
            raise TransportUnavailableError(name, state.reason, state.hint)


def uses_devices(config: Config) -> bool:
    """Whether a transport that moves GPU memory may be chosen."""
    return any_on_devices(states_of(wanted(config)))


def any_on_devices(seen: Mapping[str, Availability]) -> bool:
    """Whether one of these transports moves GPU memory, and can run."""
    return any(state.ok and registry.load(name).traits.on_device for name, state in seen.items())
