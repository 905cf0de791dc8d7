"""Transports by name, found through the entry-point group ``ckpt_transport.transports``.

The project's own transports go through the same door as anybody's. Asking for one imports that one and no other;
asking which names there are imports none.

Loading is stevedore's ``DriverManager``; finding is not. stevedore looks entry points up in a cache on disk, which

* was written in place before its later 5.x releases, so that many ranks starting cold can read half a file and crash;
* can only be switched off by a file in the user's home, which is not a library's to write;
* keeps neither the distribution an entry point came from nor two entry points that look the same.

So :class:`_Driver` overrides the public ``list_entry_points`` and is given what :mod:`importlib.metadata` says now.
Nothing is read from or written to that cache, and every rank sees what is installed. Three more things are settled
here and not left to stevedore: two plugins with one name are refused before either is imported; the class is never
instantiated (``invoke_on_load`` hands back the class when the instance is falsy); and ``AssertionError``, which it
lets through, is treated like any other failure to import.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

import msgspec
import stevedore

from ckpt_transport.errors import (
    PluginError,
    TransportConflictError,
    TransportNotFoundError,
    TransportUnavailableError,
)
from ckpt_transport.reasons import named_reason
from ckpt_transport.transports.interface import API_VERSION, Availability, Transport
from ckpt_transport.transports.traits import Traits

if TYPE_CHECKING:
    Manager = stevedore.DriverManager[Transport]
else:
    Manager = stevedore.DriverManager

GROUP = "ckpt_transport.transports"
LOOK_SECONDS = 0.02
"""A plugin that takes the place of another is seen so late at most: one update asks for each many times."""
AGAIN_SECONDS = 60.0
"""After so long it is looked whether what has kept a transport from running is mended."""


class _Driver(Manager):
    """A ``DriverManager`` that chooses among the entry points it is given."""

    def __init__(self, entry_point: EntryPoint) -> None:
        self._found = [entry_point]
        super().__init__(GROUP, entry_point.name)

    def list_entry_points(self) -> list[EntryPoint]:
        return self._found


class Registry:
    """What is installed, what was imported of it, and what failed to import.

    The module's own functions use one registry for the whole process. What was found is kept: a plugin is imported
    once, whoever asks again for one that failed gets the same reason, and installed packages are searched again only
    when a directory that Python imports from has changed. Directories are looked at once for what is asked at a time.
    """

    def __init__(self) -> None:
        self._imported: dict[tuple[str, str], object] = {}
        self._failed: dict[tuple[str, str], Exception | SystemExit] = {}
        self._searched: object = None
        self._looked_at, self._path = float("-inf"), [""]
        self._found: Sequence[EntryPoint] = ()
        self._seen: dict[str, tuple[object, float, Availability]] = {}
        """Of transports that were probed: what was installed then, when that was, and the answer."""

    def _installed(self) -> Sequence[EntryPoint]:
        """Every entry point of the group. A search takes milliseconds, or tens of them where many packages are."""
        recent = time.monotonic() - self._looked_at < LOOK_SECONDS and sys.path == self._path
        if self._searched is None or not recent:
            path = tuple(map(_state_of, sys.path))
            if path != self._searched:
                self._found, self._searched = tuple(importlib.metadata.entry_points(group=GROUP)), path
            self._looked_at, self._path = time.monotonic(), list(sys.path)
        return self._found

    def names(self) -> tuple[str, ...]:
        """The names of all installed transports, sorted. Imports no plugin."""
        self._looked_at = float("-inf")
        return tuple(sorted({entry_point.name for entry_point in self._installed()}))

    def load(self, name: str) -> type[Transport]:
        """Import one transport and return its class. Imports no other plugin, and does not probe it.

        Raises:
            TransportNotFoundError: nobody registers ``name``; lists the names there are.
            TransportConflictError: more than one entry point registers it; names the distributions.
            TransportUnavailableError: its module, or a library it imports, is missing; carries the cure.
            PluginError: it cannot be imported for another reason, or is not a transport of this API version.
        """
        return _checked(self._import(self._find(name)), name)

    def available(self, name: str) -> Availability:
        """Load and probe one transport. Whatever is wrong with the plugin is in the answer.

        Raises:
            TransportNotFoundError: nobody registers ``name``.
            TransportConflictError: more than one entry point registers it.
        """
        entry_point = self._find(name)
        try:
            answer: object = _checked(self._import(entry_point), name).probe()
        except TransportUnavailableError as error:
            return Availability(False, error.reason, error.hint)
        except PluginError as error:
            return Availability(False, str(error))
        except (Exception, SystemExit) as error:
            return Availability(False, f"its probe failed: {named_reason(error)}", _report_to(entry_point))
        if isinstance(answer, Availability):
            return answer
        return Availability(False, f"its probe answers {answer!r}, which is no Availability", _report_to(entry_point))

    def seen(self, name: str) -> Availability:
        """As :meth:`available` has answered last, while the same packages are installed. Probing searches them, and
        looks for devices, which takes milliseconds.

        A transport that could not run is probed again after :data:`AGAIN_SECONDS`, and each after :meth:`look_again`.

        Raises: as :meth:`available`.
        """
        self._find(name)
        searched, at, answer = self._seen.get(name, (None, 0.0, None))
        if answer is None or searched != self._searched or not (answer.ok or time.monotonic() < at + AGAIN_SECONDS):
            answer = self.available(name)
            self._seen[name] = self._searched, time.monotonic(), answer
        return answer

    def look_again(self) -> None:
        """What was seen may be so no more: something has failed."""
        self._seen.clear()

    def make(self, name: str, options: Mapping[str, msgspec.Struct]) -> Transport:
        """Load one transport and make one of it, with its own settings where ``options`` has any.

        Raises: as :meth:`load`.
        """
        kind = self.load(name)
        return kind(options[name]) if name in options else kind()

    def _find(self, name: str) -> EntryPoint:
        installed = self._installed()
        if all(entry_point.name != name for entry_point in installed):
            self._searched = None  # a package may have been half installed when it was searched for
            installed = self._installed()
        matches = [entry_point for entry_point in installed if entry_point.name == name]
        if not matches:
            names = sorted({entry_point.name for entry_point in installed})
            close = difflib.get_close_matches(name, names, n=1)
            suggestion = f"; did you mean '{close[0]}'?" if close else "."
            listed = ", ".join(names) or "none at all; reinstall ckpt-transport"
            raise TransportNotFoundError(f"no transport is called '{name}'{suggestion} Installed: {listed}")
        if len(matches) > 1:
            origins = " and ".join(sorted(_origin(entry_point) for entry_point in matches))
            raise TransportConflictError(f"transport '{name}' is registered by {origins}; uninstall all but one")
        return matches[0]

    def _import(self, entry_point: EntryPoint) -> object:
        key = entry_point.name, entry_point.value
        if key not in self._imported and key not in self._failed:
            try:
                self._imported[key] = _Driver(entry_point).extensions[0].plugin
            except (Exception, SystemExit) as error:
                self._failed[key] = error
        if key in self._imported:
            return self._imported[key]
        cause = self._failed[key]
        if isinstance(cause, ImportError | OSError):
            raise TransportUnavailableError(entry_point.name, named_reason(cause), _cure(entry_point, cause)) from cause
        raise PluginError(
            f"transport '{entry_point.name}' ({_origin(entry_point)}) cannot be loaded: {named_reason(cause)}"
        ) from cause


def _state_of(directory: str) -> object:
    """A value that differs when something was installed in a directory, or removed from it."""
    try:
        state = os.stat(directory or os.curdir)
    except OSError:
        return directory
    return directory, state.st_mtime_ns, state.st_nlink, state.st_size


def _checked(plugin: object, name: str) -> type[Transport]:
    if not (isinstance(plugin, type) and issubclass(plugin, Transport)):
        raise PluginError(f"transport '{name}' names {plugin!r}, which is not a subclass of ckpt_transport's Transport")
    if plugin.api_version != API_VERSION:
        raise PluginError(
            f"transport '{name}' was written for version {plugin.api_version!r} of the transport API, "
            f"and this ckpt_transport has version {API_VERSION}; install versions that match"
        )
    own_name = getattr(plugin, "name", None)
    if own_name != name:
        raise PluginError(
            f"transport '{name}' is a class that calls itself {own_name!r}; the two names must be the same"
        )
    if inspect.isabstract(plugin):
        missing = ", ".join(sorted(plugin.__abstractmethods__))
        raise PluginError(f"transport '{name}' is a class that does not define {missing}")
    traits = getattr(plugin, "traits", None)
    if not isinstance(traits, Traits):
        raise PluginError(f"transport '{name}' is a class whose traits are {traits!r} and not a Traits")
    return plugin


def _cure(entry_point: EntryPoint, error: ImportError | OSError) -> str:
    """What to install: an extra of the plugin's distribution, the plugin itself, or the module that is missing."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and (entry_point.module == missing or entry_point.module.startswith(f"{missing}.")):
        return f"pip install --force-reinstall {_distribution(entry_point)}"
    extra = _extra(entry_point)
    if extra:
        return f"pip install '{_distribution(entry_point)}[{extra}]'"
    if missing:
        module = missing.partition(".")[0]
        return f"pip install {module} (or whichever package provides the module '{module}')"
    return ""


def _extra(entry_point: EntryPoint) -> str | None:
    """The extra that brings a transport's library: the one its entry point names, or the one of its own name."""
    if entry_point.extras:
        return ",".join(entry_point.extras)
    if entry_point.dist is None:
        return None
    provided = entry_point.dist.metadata.get_all("Provides-Extra") or []
    wanted = entry_point.name.replace("_", "-")
    return next((extra for extra in provided if extra.replace("_", "-").lower() == wanted), None)


def _distribution(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else "the distribution it came from"


def _report_to(entry_point: EntryPoint) -> str:
    return f"report this to the authors of {_distribution(entry_point)}"


def _origin(entry_point: EntryPoint) -> str:
    version = f" {entry_point.dist.version}" if entry_point.dist is not None else ""
    return f"{_distribution(entry_point)}{version} as {entry_point.value}"


_registry = Registry()
names = _registry.names
load = _registry.load
make = _registry.make
available = _registry.available
seen = _registry.seen
look_again = _registry.look_again
