"""The settings that a struct declares, and the check of one value that was given for one of them."""

from __future__ import annotations

import difflib
import re
import typing
from pathlib import Path

import msgspec
from msgspec import Meta

from ckpt_transport.decoding import prepared
from ckpt_transport.errors import ConfigError
from ckpt_transport.sizes import parse_size, size
from ckpt_transport.transports.options import Chosen, Gathered

TRANSPORTS = "transports"
"""The setting that has a table for each transport."""


class Declared:
    """The settings of a struct, by name.

    Attributes:
        names: of all settings, in order.
        defaults: of each.
    """

    def __init__(self, struct: type[msgspec.Struct]) -> None:
        fields = msgspec.structs.fields(struct)
        self.names = tuple(field.name for field in fields)
        self.defaults: dict[str, object] = {field.name: field.default for field in fields}
        self._types = {field.name: field.type for field in fields}
        self._meta: dict[str, Meta] = {field.name: typing.get_args(field.type)[1] for field in fields}

    def convert(self, name: str, value: object, source: str, *, is_text: bool = False) -> object:
        """The checked value of one setting.

        Args:
            name: of the setting.
            value: as it was given.
            source: where it came from, for messages.
            is_text: it comes from the environment, where everything is text.

        Raises:
            ConfigError: nobody knows the setting, or the value makes no sense.
        """
        if name not in self.names:
            raise self._unknown(name, source)
        if name == TRANSPORTS:
            if isinstance(value, Chosen):
                return value
            own = Gathered()
            own.add_tables(value, source)
            return own.chosen()
        texts = value if isinstance(value, list | tuple) else [value]
        if any("\0" in str(text) for text in texts if isinstance(text, str | Path)):
            raise ConfigError(f"'{name}' {source} has a NUL character in it: {_quoted(value)} was given; take it out")
        plain = value
        try:
            if self._kind(name) == "size" and isinstance(value, str):
                plain = parse_size(value)
            elif isinstance(value, Path):
                plain = str(value)
            elif is_text and isinstance(value, str) and isinstance(self.defaults[name], tuple):
                plain = [part.strip() for part in value.split(",") if part.strip()]
            return msgspec.convert(plain, prepared(self._types[name]), strict=not is_text)
        except (msgspec.ValidationError, ConfigError) as error:
            raise ConfigError(
                f"bad value for '{name}' {source}: {_refused(plain, error)}, and {self._said(name, 'expects')} is "
                f"expected. Its meaning: {self._meta[name].description}"
            ) from error

    def describe(self) -> list[tuple[str, str, str, str]]:
        """Name, type, default and meaning of every setting, in order."""
        return [(name, self._kind(name), self._shown(name), self._meta[name].description or "") for name in self.names]

    def _unknown(self, name: str, source: str) -> ConfigError:
        close = difflib.get_close_matches(name, self.names, n=1)
        suggestion = f"; did you mean '{close[0]}'?" if close else "."
        return ConfigError(f"unknown setting '{name}' {source}{suggestion} Settings: {', '.join(self.names)}")

    def _kind(self, name: str) -> str:
        return self._said(name, "type")

    def _said(self, name: str, what: str) -> str:
        return str((self._meta[name].extra or {})[what])

    def _shown(self, name: str) -> str:
        default = self.defaults[name]
        if isinstance(default, tuple | Chosen):
            return ",".join(str(item) for item in default)
        return size(default) if self._kind(name) == "size" and isinstance(default, int) else str(default)


def _refused(value: object, error: Exception) -> str:
    """Say what was given; of a list the element that ``error`` points at."""
    place = re.search(r"`\$\[(\d+)\]", str(error))
    if place is None or not isinstance(value, list | tuple):
        return f"{_quoted(value)} was given"
    at = int(place[1])
    return f"{_quoted(value[at])} was given as number {at + 1} of {len(value)}"


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
