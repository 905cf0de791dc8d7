"""Settings that a transport has of its own.

A transport declares them as a struct in
:attr:`~ckpt_transport.transports.interface.Transport.options_type` and gets them as
``self.options``. They are given as a table ``[transports.NAME]`` in the TOML file, as ``CKPT_TRANSPORT_NAME_SETTING``
in the environment (with ``_`` for whatever in the name is no letter or digit), or to
:class:`~ckpt_transport.Config` as ``transports={"NAME": {...}}``. Giving one imports that transport and no other.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from ckpt_transport.decoding import prepared
from ckpt_transport.errors import ConfigError
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Transport


@dataclass(frozen=True, slots=True)
class Given:
    """One value, as somebody gave it.

    Attributes:
        source: where it came from, for messages.
        is_text: it comes from where everything is text.
    """

    value: object
    source: str
    is_text: bool = False


class Chosen(Mapping[str, msgspec.Struct]):
    """The settings of those transports for which there are any. Cannot be changed."""

    def __init__(self, structs: Mapping[str, msgspec.Struct] | None = None) -> None:
        self._structs = dict(structs or {})

    def __getitem__(self, name: str) -> msgspec.Struct:
        return self._structs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._structs)

    def __len__(self) -> int:
        return len(self._structs)

    def __hash__(self) -> int:
        return hash(frozenset(self._structs.items()))

    def __repr__(self) -> str:
        return repr(self._structs)


class Gathered:
    """The settings of all transports while their sources are read, lowest first; later ones overrule, one by one."""

    def __init__(self) -> None:
        self._given: dict[str, dict[str, Given]] = {}

    def add(self, name: str, setting: str, given: Given) -> None:
        self._given.setdefault(name, {})[setting] = given

    def add_tables(self, tables: object, source: str) -> None:
        """
        Raises:
            ConfigError: ``tables`` is not a table for each transport.
        """
        if not isinstance(tables, Mapping):
            raise ConfigError(f"bad value for 'transports' {source}: {tables!r} was given, and a table is expected")
        for name, table in tables.items():
            if isinstance(table, msgspec.Struct):
                table = msgspec.structs.asdict(table)
            if not isinstance(table, Mapping):
                raise ConfigError(
                    f"bad value for 'transports.{name}' {source}: {table!r} was given, and a table of settings is "
                    f"expected, as [transports.{name}]"
                )
            self._given.setdefault(name, {})
            for setting, value in table.items():
                self.add(name, setting, Given(value, source))

    def chosen(self) -> Chosen:
        """What each transport that was given any settings declares, filled with them.

        Raises:
            ConfigError: a setting is unknown, missing, or of the wrong type.
            PluginError: there is no such transport, or its plugin cannot be imported.
        """
        return Chosen({name: _filled(registry.load(name), given) for name, given in self._given.items()})


def named_by(suffix: str) -> tuple[str, str] | None:
    """The installed transport and its setting that the end of an environment variable stands for, if any."""
    for name in sorted(registry.names(), key=len, reverse=True):
        prefix = re.sub(r"[^A-Z0-9]", "_", name.upper()) + "_"
        if suffix.startswith(prefix) and suffix == suffix.upper():
            return name, suffix.removeprefix(prefix).lower()
    return None


def describe(transport: type[Transport]) -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of every setting that a transport has of its own."""
    for field in msgspec.structs.fields(transport.options_type):
        yield field.name, "" if field.default is msgspec.NODEFAULT else str(field.default), _meaning(field)


def _filled(transport: type[Transport], given: Mapping[str, Given]) -> msgspec.Struct:
    declared = {field.name: field for field in msgspec.structs.fields(transport.options_type)}
    for setting in given:
        if setting not in declared:
            raise _unknown(transport, setting, given[setting].source, list(declared))
    values = {setting: _checked(transport, declared[setting], value) for setting, value in given.items()}
    try:
        return msgspec.convert(values, prepared(transport.options_type))
    except msgspec.ValidationError as error:
        raise ConfigError(f"the settings of transport '{transport.name}' do not fit: {error}") from error


def _checked(transport: type[Transport], field: msgspec.structs.FieldInfo, given: Given) -> object:
    plain = given.value
    if given.is_text and isinstance(plain, str) and _is_list(field.type):
        plain = [part.strip() for part in plain.split(",") if part.strip()]
    try:
        return msgspec.convert(plain, prepared(field.type), strict=not given.is_text)
    except msgspec.ValidationError as error:
        meaning = _meaning(field)
        raise ConfigError(
            f"bad value for '{field.name}' of transport '{transport.name}' {given.source}: {given.value!r} was given. "
            f"{error}." + (f" Its meaning: {meaning}" if meaning else "")
        ) from error


def _unknown(transport: type[Transport], setting: str, source: str, declared: list[str]) -> ConfigError:
    if not declared:
        return ConfigError(
            f"transport '{transport.name}' has no settings of its own, and '{setting}' was given {source}"
        )
    close = difflib.get_close_matches(setting, declared, n=1)
    suggestion = f"; did you mean '{close[0]}'?" if close else "."
    return ConfigError(
        f"unknown setting '{setting}' of transport '{transport.name}' {source}{suggestion} "
        f"Settings: {', '.join(declared)}"
    )


def _is_list(hint: object) -> bool:
    plain = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    return typing.get_origin(plain) in (tuple, list)


def _meaning(field: msgspec.structs.FieldInfo) -> str:
    if typing.get_origin(field.type) is not typing.Annotated:
        return ""
    notes = [note for note in typing.get_args(field.type)[1:] if isinstance(note, msgspec.Meta)]
    return next((note.description for note in notes if note.description), "")
