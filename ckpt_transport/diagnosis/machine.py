"""Everything about this machine that updates depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ckpt_transport.config import Config
from ckpt_transport.diagnosis import devices, limits, network, packages, shared_memory
from ckpt_transport.diagnosis.finding import Finding, Severity
from ckpt_transport.errors import ConfigError

LOOKS: tuple[Callable[[], Iterable[Finding]], ...] = (
    packages.look,
    shared_memory.look,
    limits.look,
    devices.look,
    network.look,
    packages.look_at_transports,
)


def look_at_machine() -> Iterator[Finding]:
    """Look at settings, packages, shared memory, limits, devices, network, clock and transports, in turn."""
    yield _settings()
    for look in LOOKS:
        yield from look()


def _settings() -> Finding:
    try:
        Config.load()
    except ConfigError as error:
        return Finding("settings", Severity.PROBLEM, str(error), "mend the variable or the file that it names")
    return Finding("settings", Severity.OK, "those of the environment can be read")
