"""Every setting there is, where it may come from, and what it means.

From low to high: the default, a TOML file (named by argument or by ``CKPT_TRANSPORT_CONFIG``), the environment
(``CKPT_TRANSPORT_<FIELD>``), and arguments. A setting nobody knows or that makes no sense is an error that says where
it came from; nothing is ignored. An empty variable is an empty value, not a missing one. What a transport has of its
own is given as a table ``[transports.NAME]`` or as ``CKPT_TRANSPORT_NAME_SETTING``.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ckpt_transport.decoding import prepared
from ckpt_transport.errors import ConfigError
from ckpt_transport.paths import without_nul
from ckpt_transport.sizes import parse_size, size
from ckpt_transport.transports import options
from ckpt_transport.transports.options import Chosen, Gathered, Given

ENV_PREFIX = "CKPT_TRANSPORT_"
ENV_FILE = f"{ENV_PREFIX}CONFIG"

MIB = 1024**2
WEEK = 7 * 24 * 3600.0
TRANSPORTS = "transports"

_ADDRESS = r"(ipc|tcp)://\S+"
_NAME = r"[A-Za-z0-9_.-]+"
_BANDWIDTH = "a number of bytes per second, or text as '10GB'; 0 for not known"
_SINKS = "a list of addresses, each as 'ipc:///run/sink.sock', 'tcp://host:port' or 'tcp://[IPv6]:port'"


def _setting(meaning: str, kind: str, expects: str, **bounds: Any) -> Meta:
    """What is said about a setting: what it means, what kind of value it has, and which it may have."""
    return Meta(description=meaning, extra={"type": kind, "expects": expects}, **bounds)


def _size(meaning: str) -> Meta:
    expects = "a size above zero: a number of bytes, or text as '64MiB', '1GiB', '512KiB', '4MB'"
    return _setting(meaning, "size", expects, ge=1)


def _seconds(meaning: str) -> Meta:
    return _setting(meaning, "seconds", "a number of seconds above zero and at most a week", gt=0, le=WEEK)


def _text(meaning: str, expects: str = "text", **bounds: Any) -> Meta:
    return _setting(meaning, "text", expects, **bounds)


def _one_of(meaning: str, *values: str) -> Meta:
    return _setting(meaning, " | ".join(values), " or ".join(f"'{value}'" for value in values))


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one participant. Made by :meth:`load`, or directly; both check every value.

    Sizes are bytes and times are seconds. Sizes may be given as text such as ``"64MiB"`` and are kept as integers.

    Raises:
        ConfigError: a value has the wrong type or makes no sense.
    """

    transport: Annotated[
        str,
        _text(
            "The transport to use: a name, 'auto' for the best one here, a relay as 'gloo+shm', or a chain broadcast "
            "as 'gloo-chain'.",
            "the name of a transport, 'auto', or names joined by '+'",
            pattern=rf"^{_NAME}(\+{_NAME})*\Z",
        ),
    ] = "auto"
    bucket_bytes: Annotated[int, _size("The largest bucket, the unit that moves through the pipeline.")] = 64 * MIB
    ring_depth: Annotated[
        int,
        _setting("How many buckets may be in the pipeline at once.", "integer", "a whole number, 1 or more", ge=1),
    ] = 4
    memory_budget: Annotated[
        int,
        _setting(
            "The most extra memory each participant may use for an update; 0 for half of what is free when its first "
            "update begins, and 512 MiB at least.",
            "size",
            "a number of bytes, or text as '2GiB'; 0 for what free memory allows",
            ge=0,
        ),
    ] = 0
    join_timeout: Annotated[float, _seconds("How long to wait for all participants to turn up.")] = 30.0
    endpoint_timeout: Annotated[
        float, _seconds("How long to wait for engines that are driven at their endpoints and do not answer yet.")
    ] = 30.0
    update_timeout: Annotated[float, _seconds("How long one update may take before it is aborted.")] = 600.0
    commit_timeout: Annotated[
        float,
        _seconds("How long a version that was staged may wait for its commit, where a trainer chooses the moment."),
    ] = 3600.0
    heartbeat_interval: Annotated[float, _seconds("How often each participant says that it is alive.")] = 0.5
    heartbeat_timeout: Annotated[float, _seconds("How long a participant may be silent before it counts as dead.")] = (
        5.0
    )
    sinks: Annotated[
        tuple[Annotated[str, Meta(pattern=rf"^{_ADDRESS}\Z")], ...],
        _setting(
            "The addresses of the sinks to update; separated by commas in the environment.", "list of addresses", _SINKS
        ),
    ] = ()
    coordinator: Annotated[
        str,
        _setting(
            "The address the first source binds for the others to join; chosen when empty.",
            "address",
            "an address as 'ipc:///run/update.sock' or 'tcp://host:port', or nothing",
            pattern=rf"^({_ADDRESS})?\Z",
        ),
    ] = ""
    interface: Annotated[
        str,
        _text(
            "The address that TCP sockets bind when another host must reach this participant.",
            "the address or the host name of a network interface",
            pattern=r"^\S+\Z",
        ),
    ] = "127.0.0.1"
    link: Annotated[
        int,
        _setting(
            "Bytes per second of this participant's link to other hosts, so that holders share out what they send by "
            "it; 0 when it is not known.",
            "size",
            _BANDWIDTH,
            ge=0,
        ),
    ] = 0
    host: Annotated[
        str, _text("The name of this participant's host; equal names mean that shared memory can be mapped.")
    ] = ""
    secret_file: Annotated[
        str,
        _text("The file with the shared secret that encrypts and authenticates TCP; the same for all participants."),
    ] = ""
    api_key_file: Annotated[
        str,
        _text("The file with the API key of engines that are driven at their endpoints; none when empty."),
    ] = ""
    insecure: Annotated[
        bool,
        _setting(
            "Whether TCP over loopback may do without a secret, so that every user of the host can pose as a "
            "participant.",
            "true | false",
            "true or false",
        ),
    ] = False
    pool: Annotated[
        Literal["auto", "shared", "private"],
        _one_of(
            "Where a source keeps a version: in shared memory that sinks can map, in its own memory, or 'auto': in "
            "shared memory where /dev/shm has room for it.",
            "auto",
            "shared",
            "private",
        ),
    ] = "auto"
    read_threads: Annotated[
        int,
        _setting(
            "How many threads read a checkpoint or copy tensors; 0 means as many as there are cores, up to 16.",
            "integer",
            "a whole number from 0 to 1024",
            ge=0,
            le=1024,
        ),
    ] = 0
    verify_apply: Annotated[
        Literal["first", "always"],
        _one_of(
            "When a sink compares what it replays with what the engine's own loader does, byte for byte.",
            "first",
            "always",
        ),
    ] = "first"
    integrity: Annotated[
        Literal["always", "never"],
        _one_of(
            "When sinks compare a digest of the bytes of each bucket with its owner's before they commit; what source "
            "rank 0, or who leads a join, has set holds for all.",
            "always",
            "never",
        ),
    ] = "always"
    commit: Annotated[
        Literal["in_place", "staged", "auto"],
        _one_of(
            "Whether a version is written over what sinks serve while requests stand still, or staged beside it and "
            "then exchanged with it; 'auto' for staged where every sink can.",
            "in_place",
            "staged",
            "auto",
        ),
    ] = "in_place"
    staging_budget: Annotated[
        int,
        _setting(
            "The most memory that a sink may take to stage a version; 0 for half of what is free.",
            "size",
            "a number of bytes, or text as '40GiB'; 0 for what free memory allows",
            ge=0,
        ),
    ] = 0
    keep_previous: Annotated[
        int,
        _setting(
            "How many versions before the one it serves a sink keeps for rollbacks, where versions are staged: one "
            "that was replaced by all of another, and any number that deltas replaced.",
            "integer",
            "a number of versions, 0 for none",
            ge=0,
        ),
    ] = 1
    delta: Annotated[
        Literal["off", "on", "auto"],
        _one_of(
            "Whether a source sends only what has changed to sinks that serve the version it has brought before, and "
            "keeps a published version for that; 'on' wherever sinks can take it, 'auto' where it is sooner, too.",
            "off",
            "on",
            "auto",
        ),
    ] = "off"
    metrics: Annotated[
        str,
        _text(
            "Serve metrics for Prometheus at this HOST:PORT, or at the next port that is free; none when empty.",
            "HOST:PORT",
        ),
    ] = ""
    history: Annotated[
        str,
        _text(
            "The file that whoever leads updates appends to what became of each, for the dashboard; none when empty."
        ),
    ] = ""
    opentelemetry: Annotated[
        bool,
        _setting(
            "Whether updates become OpenTelemetry spans, one trace from the trainer to all engines.",
            "true | false",
            "true or false",
        ),
    ] = False
    log_format: Annotated[
        Literal["", "text", "json"],
        _one_of(
            "How log lines are written to standard error, one for each event, from level INFO; nothing is done about "
            "them when empty, so that Python writes warnings as they are.",
            "",
            "text",
            "json",
        ),
    ] = ""
    trace: Annotated[str, _text("The file to write a Chrome or Perfetto trace of the update to; none when empty.")] = ""
    transports: Annotated[
        Any,
        _setting(
            "Settings that transports have of their own, a table for each.",
            "tables",
            "a table for each transport, as [transports.NAME]",
        ),
    ] = Chosen()

    @classmethod
    def load(cls, path: Path | None = None, environ: Mapping[str, str] | None = None, **overrides: object) -> Config:
        """Gather the settings from all sources.

        Args:
            path: a TOML file; by default the one that ``CKPT_TRANSPORT_CONFIG`` names, if any.
            environ: the environment; by default this process's.
            overrides: settings by name, as a command line gives them. None means "not given".

        Raises:
            ConfigError: the file cannot be read or is not TOML; a setting is unknown; a value has the wrong type or
                makes no sense. The message names the setting and where it came from.
            PluginError: there are settings for a transport that there is not, or whose plugin cannot be imported.
        """
        environ = os.environ if environ is None else environ
        file_source = ""
        if path is None and environ.get(ENV_FILE):
            path, file_source = Path(environ[ENV_FILE]), f" (named by {ENV_FILE})"
        values: dict[str, object] = {}
        sources: dict[str, str] = {}
        own = Gathered()

        def take(key: str, value: object, source: str) -> None:
            if key == TRANSPORTS:
                own.add_tables(value, source)
            else:
                values[key] = _convert(key, value, source)
                sources[key] = source

        if path is not None:
            for key, value in _read_toml(path, file_source).items():
                take(key, value, f"in {path}")
        for variable, text in environ.items():
            source = f"in the environment variable {variable}"
            meant = _meant_by(variable)
            if isinstance(meant, tuple):
                own.add(*meant, Given(text, source, is_text=True))
            elif meant is not None:
                values[meant] = _convert(meant, text, source, is_text=True)
                sources[meant] = source
        for key, given in overrides.items():
            if given is not None:
                take(key, given, "in the arguments")
        _check_together({**_DEFAULTS, **values}, sources)
        return msgspec.convert({**values, TRANSPORTS: own.chosen()}, prepared(cls))

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            checked = _convert(name, value, "in the arguments")
            if checked is not value:
                msgspec.structs.force_setattr(self, name, checked)
        _check_together(msgspec.structs.asdict(self), {})


_FIELDS = {field.name: field for field in msgspec.structs.fields(Config)}
_DEFAULTS = {name: field.default for name, field in _FIELDS.items()}
_META: dict[str, Meta] = {name: typing.get_args(field.type)[1] for name, field in _FIELDS.items()}

_SERVICE_LINK = re.compile(r"(?:.+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)")
"""What Kubernetes puts into every pod of a namespace that has a service called ckpt-transport."""


def describe() -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of every setting, in order, for help texts and the reference."""
    return [(name, _kind(name), _shown(name, _DEFAULTS[name]), _META[name].description or "") for name in _FIELDS]


def _convert(name: str, value: object, source: str, *, is_text: bool = False) -> object:
    """The checked value of one setting. ``is_text``: it comes from the environment, where everything is text."""
    if name not in _FIELDS:
        raise _unknown(name, source)
    if name == TRANSPORTS:
        if isinstance(value, Chosen):
            return value
        own = Gathered()
        own.add_tables(value, source)
        return own.chosen()
    texts = value if isinstance(value, list | tuple) else [value]
    if any("\0" in str(text) for text in texts if isinstance(text, str | Path)):
        raise ConfigError(f"'{name}' {source} has a NUL character in it: {_quoted(value)} was given; take it out")
    try:
        plain = value
        if _kind(name) == "size" and isinstance(value, str):
            plain = parse_size(value)
        elif isinstance(value, Path):
            plain = str(value)
        elif is_text and isinstance(value, str) and isinstance(_DEFAULTS[name], tuple):
            plain = [part.strip() for part in value.split(",") if part.strip()]
        return msgspec.convert(plain, prepared(_FIELDS[name].type), strict=not is_text)
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(
            f"bad value for '{name}' {source}: {_quoted(value)} was given, and {_expects(name)} is expected. "
            f"Its meaning: {_META[name].description}"
        ) from error


def _read_toml(path: Path, source: str) -> dict[str, object]:
    try:
        text = without_nul(path, ConfigError).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}{source}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the configuration file {path}{source} is not UTF-8 text: {error}") from error
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(f"{path}{source} is nested deeper than settings are: {error}") from error
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = found[1] if found else max(len(text.splitlines()), 1)
        raise ConfigError(f"{path}{source}, line {line}: not valid TOML: {error}") from error


def _meant_by(variable: str) -> str | tuple[str, str] | None:
    """The setting an environment variable stands for, or a transport and its own setting; None when it is not ours.

    Raises:
        ConfigError: it has our prefix and stands for nothing.
    """
    suffix = variable.removeprefix(ENV_PREFIX)
    if suffix == variable or variable == ENV_FILE or _SERVICE_LINK.fullmatch(suffix):
        return None
    if suffix.lower() in _FIELDS:
        if suffix == suffix.upper():
            return suffix.lower()
    elif option := options.named_by(suffix):
        return option
    close = difflib.get_close_matches(suffix.lower(), _FIELDS, n=1)
    suggestion = f"; did you mean {ENV_PREFIX}{close[0].upper()}?" if close else "."
    known = ", ".join(name.upper() for name in _FIELDS if name != TRANSPORTS)
    raise ConfigError(
        f"unknown environment variable {variable}{suggestion} After {ENV_PREFIX} may come: {known}, CONFIG, or "
        "the name of an installed transport and one of its settings"
    )


def _unknown(name: str, source: str) -> ConfigError:
    close = difflib.get_close_matches(name, _FIELDS, n=1)
    suggestion = f"; did you mean '{close[0]}'?" if close else "."
    return ConfigError(f"unknown setting '{name}' {source}{suggestion} Settings: {', '.join(_FIELDS)}")


def _check_together(values: Mapping[str, object], sources: Mapping[str, str]) -> None:
    """Check what no setting says alone. ``sources``: where each that was given came from."""
    _check_heartbeat(values, sources)
    if values["delta"] != "off" and values["commit"] == "in_place":
        raise ConfigError(
            f"'delta' is '{values['delta']}' and 'commit' is 'in_place'{_origin(sources, 'delta', 'commit')}: what has "
            "changed is staged, and never written while it comes; set commit to 'auto' or 'staged', or delta to 'off'"
        )


def _origin(sources: Mapping[str, str], *names: str) -> str:
    given = [f"'{name}' {sources[name]}" for name in names if name in sources]
    return f" ({', '.join(given)})" if given else ""


def _check_heartbeat(values: Mapping[str, object], sources: Mapping[str, str]) -> None:
    interval, timeout = values["heartbeat_interval"], values["heartbeat_timeout"]
    assert isinstance(interval, float)
    assert isinstance(timeout, float)
    if timeout <= interval:
        origin = _origin(sources, "heartbeat_interval", "heartbeat_timeout")
        raise ConfigError(
            f"'heartbeat_timeout' is {timeout:g} s and must be longer than 'heartbeat_interval', which is "
            f"{interval:g} s{origin}: a participant would count as dead before it can speak"
        )


def _kind(name: str) -> str:
    return str((_META[name].extra or {})["type"])


def _expects(name: str) -> str:
    return str((_META[name].extra or {})["expects"])


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _shown(name: str, value: object) -> str:
    if isinstance(value, tuple | Chosen):
        return ",".join(str(item) for item in value)
    return size(value) if _kind(name) == "size" and isinstance(value, int) else str(value)
