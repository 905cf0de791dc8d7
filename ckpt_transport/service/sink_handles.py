"""A sink is named by its address, or by a handle: an object that stands for the process that has the sink.

An object whose ``address`` is text tells it, as a :class:`~ckpt_transport.Sink` does. Handles of a framework, as Ray's
of actors, are located by an adapter. It is found by the entry point group ``ckpt_transport.handles``, under the name of
the package that the handle's class is from, and imported when such a handle comes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeAlias

from ckpt_transport.config import Config
from ckpt_transport.errors import ConfigError

GROUP = "ckpt_transport.handles"


class SinkHandle(Protocol):
    """Stands for a sink: its ``address`` is text, or what the framework's adapter knows how to ask for."""

    @property
    def address(self) -> Any: ...


AnySink: TypeAlias = str | SinkHandle


class LocatedHandles(ABC):
    """Handles of one framework, located.

    Attributes:
        addresses: of the sinks that they stand for, in the order of the handles.
    """

    addresses: Sequence[str]

    @abstractmethod
    def gone(self, patience: float) -> Sequence[str]:
        """Which of their processes are gone, or are others now, and why: a clause for each. These are located again.

        Args:
            patience: how many seconds it may wait for those that do not answer at once.
        """


LocateHandles: TypeAlias = Callable[[Sequence[Any], float], LocatedHandles]
"""What an adapter's entry point is: it locates handles within so many seconds. It raises JoinError where it cannot, and
names who is gone or does not answer."""


@dataclass(frozen=True, slots=True)
class LocatedSinks:
    """The sinks of a call.

    Attributes:
        addresses: of each, in the caller's order.
        handles: those that were named by handles.
    """

    addresses: tuple[str, ...]
    handles: tuple[LocatedHandles, ...] = ()

    def gone(self, patience: float) -> list[str]:
        """As :meth:`LocatedHandles.gone`."""
        return [why for located in self.handles for why in located.gone(patience)]


def locate(sinks: Sequence[AnySink], config: Config) -> LocatedSinks:
    """Find the addresses of sinks; a text is taken for one.

    Raises:
        ConfigError: something is neither an address nor a handle, or they are no list.
        JoinError: a handle's process is gone, or does not answer within ``join_timeout``; names it.
    """
    check_list(sinks)
    addresses = {number: text for number, sink in enumerate(sinks) if (text := _told_by(sink))}
    framework_of = {number: _framework(sinks[number]) for number in range(len(sinks)) if number not in addresses}
    found = []
    for framework in dict.fromkeys(framework_of.values()):
        numbers = [number for number, other in framework_of.items() if other == framework]
        located = _adapter(framework, sinks[numbers[0]])([sinks[number] for number in numbers], config.join_timeout)
        addresses.update(zip(numbers, located.addresses, strict=True))
        found.append(located)
    return LocatedSinks(tuple(addresses[number] for number in range(len(sinks))), tuple(found))


def check_list(sinks: object) -> None:
    """
    Raises:
        ConfigError: this is one sink, or none, and not a list of them.
    """
    if isinstance(sinks, str) or not isinstance(sinks, Iterable):
        raise ConfigError(f"sinks are to be a list, also where there is one: give [{sinks!r}] instead of {sinks!r}")


def _told_by(sink: AnySink) -> str:
    text = sink if isinstance(sink, str) else getattr(sink, "address", "")
    return text if isinstance(text, str) else ""


def _framework(handle: object) -> str:
    return type(handle).__module__.partition(".")[0]


def _adapter(framework: str, handle: object) -> LocateHandles:
    points = entry_points(group=GROUP)
    for point in points:
        if point.name == framework:
            adapter: LocateHandles = point.load()
            return adapter
    known = ", ".join(sorted({point.name for point in points})) or "none"
    raise ConfigError(
        f"{handle!r} is no sink: name it by its address, by an object whose 'address' is text, or by a handle of a "
        f"framework that has an adapter; there are adapters for: {known}"
    )


def say_gone(error: Exception, gone: Sequence[str]) -> None:
    """Add to an error which processes are gone, where it does not say that yet."""
    if news := [why for why in gone if why not in str(error)]:
        error.args = ("; ".join((str(error), *news)), *error.args[1:])
