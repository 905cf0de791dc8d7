"""The settings of one participant: each with its default, its meaning and its bounds."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ckpt_transport.config import meaning
from ckpt_transport.config.combinations import check_together
from ckpt_transport.config.declared import TRANSPORTS, Declared
from ckpt_transport.config.environment import ENV_FILE, meant_by
from ckpt_transport.config.toml_file import read_toml
from ckpt_transport.decoding import prepared
from ckpt_transport.errors import ConfigError
from ckpt_transport.transports.options import Chosen, Gathered, Given

MIB = 1024**2

_ADDRESS = r"(ipc|tcp)://\S+"
_NAME = r"[A-Za-z0-9_.-]+"
_BANDWIDTH = "a number of bytes per second, or text as '10GB'; 0 for not known"
_SINKS = (
    "a list of addresses, each as 'ipc:///run/sink.sock', 'tcp://host:port' or 'tcp://[IPv6]:port' (the URL of an "
    "engine goes to --endpoint, or to a fleet)"
)


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one participant. Made by :meth:`load`, or directly; both check every value.

    Sizes are bytes and times are seconds. Sizes may be given as text such as ``"64MiB"`` and are kept as integers.

    Raises:
        ConfigError: a value has the wrong type or makes no sense.
    """

    transport: Annotated[
        str,
        meaning.text(
            "The transport to use: a name, 'auto' for the best one here, a relay as 'gloo+shm', or a chain broadcast "
            "as 'gloo-chain'.",
            "the name of a transport, 'auto', or names joined by '+'",
            pattern=rf"^{_NAME}(\+{_NAME})*\Z",
        ),
    ] = "auto"
    bucket_bytes: Annotated[
        int,
        meaning.size(
            "The largest bucket, the unit that moves through the pipeline; from GPU to GPU, and to a GPU whose engine "
            "runs meanwhile, up to eight times as much, where memory allows."
        ),
    ] = 64 * MIB
    ring_depth: Annotated[
        int,
        meaning.setting(
            "How many buckets may be in the pipeline at once.", "integer", "a whole number, 1 or more", ge=1
        ),
    ] = 4
    memory_budget: Annotated[
        int,
        meaning.setting(
            "The most extra memory each participant may use for an update; 0 for half of what is free when its first "
            "update begins, and 512 MiB at least.",
            "size",
            "a number of bytes, or text as '2GiB'; 0 for what free memory allows",
            ge=0,
        ),
    ] = 0
    join_timeout: Annotated[float, meaning.seconds("How long to wait for all participants to turn up.")] = 30.0
    endpoint_timeout: Annotated[
        float, meaning.seconds("How long to wait for engines that are driven at their endpoints and do not answer yet.")
    ] = 30.0
    update_timeout: Annotated[float, meaning.seconds("How long one update may take before it is aborted.")] = 600.0
    commit_timeout: Annotated[
        float,
        meaning.seconds(
            "How long a version that was staged may wait for its commit, where a trainer chooses the moment."
        ),
    ] = 3600.0
    heartbeat_interval: Annotated[float, meaning.seconds("How often each participant says that it is alive.")] = 0.5
    heartbeat_timeout: Annotated[
        float, meaning.seconds("How long a participant may be silent before it counts as dead.")
    ] = 5.0
    sinks: Annotated[
        tuple[Annotated[str, Meta(pattern=rf"^{_ADDRESS}\Z")], ...],
        meaning.setting(
            "The addresses of the sinks to update; separated by commas in the environment.", "list of addresses", _SINKS
        ),
    ] = ()
    coordinator: Annotated[
        str,
        meaning.setting(
            "The address the first source binds for the others to join; chosen when empty.",
            "address",
            "an address as 'ipc:///run/update.sock' or 'tcp://host:port', or nothing",
            pattern=rf"^({_ADDRESS})?\Z",
        ),
    ] = ""
    interface: Annotated[
        str,
        meaning.text(
            "The address that TCP sockets bind when another host must reach this participant.",
            "the address or the host name of a network interface",
            pattern=r"^\S+\Z",
        ),
    ] = "127.0.0.1"
    link: Annotated[
        int,
        meaning.setting(
            "Bytes per second of this participant's link to other hosts, so that holders share out what they send by "
            "it; 0 when it is not known.",
            "size",
            _BANDWIDTH,
            ge=0,
        ),
    ] = 0
    host: Annotated[
        str, meaning.text("The name of this participant's host; equal names mean that shared memory can be mapped.")
    ] = ""
    secret_file: Annotated[
        str,
        meaning.text(
            "The file with the shared secret that encrypts and authenticates TCP; the same for all participants."
        ),
    ] = ""
    api_key_file: Annotated[
        str,
        meaning.text("The file with the API key of engines that are driven at their endpoints; none when empty."),
    ] = ""
    insecure: Annotated[
        bool,
        meaning.setting(
            "Whether TCP over loopback may do without a secret, so that every user of the host can pose as a "
            "participant.",
            "true | false",
            "true or false",
        ),
    ] = False
    pool: Annotated[
        Literal["auto", "shared", "private"],
        meaning.one_of(
            "Where a source keeps a version: in shared memory that sinks can map, in its own memory, or 'auto': in "
            "shared memory where /dev/shm has room for it.",
            "auto",
            "shared",
            "private",
        ),
    ] = "auto"
    read_threads: Annotated[
        int,
        meaning.setting(
            "How many threads read a checkpoint or copy tensors; 0 means as many as there are cores, up to 16.",
            "integer",
            "a whole number from 0 to 1024",
            ge=0,
            le=1024,
        ),
    ] = 0
    verify_apply: Annotated[
        Literal["first", "always"],
        meaning.one_of(
            "When a sink compares what it replays with what the engine's own loader does, byte for byte.",
            "first",
            "always",
        ),
    ] = "first"
    integrity: Annotated[
        Literal["always", "never"],
        meaning.one_of(
            "When sinks compare a digest of the bytes of each bucket with its owner's before they commit; what source "
            "rank 0, or who leads a join, has set holds for all.",
            "always",
            "never",
        ),
    ] = "always"
    commit: Annotated[
        Literal["in_place", "staged", "auto", "shortest"],
        meaning.one_of(
            "Whether a version is written over what sinks serve while requests stand still, or staged beside it and "
            "then exchanged with it; 'auto' for staged where every sink can, 'shortest' for what is expected to hold "
            "requests for a shorter time.",
            "in_place",
            "staged",
            "auto",
            "shortest",
        ),
    ] = "in_place"
    staging_budget: Annotated[
        int,
        meaning.setting(
            "The most memory that a sink may take to stage a version; 0 for half of what is free.",
            "size",
            "a number of bytes, or text as '40GiB'; 0 for what free memory allows",
            ge=0,
        ),
    ] = 0
    keep_previous: Annotated[
        int,
        meaning.setting(
            "How many versions before the one it serves a sink keeps for rollbacks, where versions are staged: one "
            "that was replaced by all of another, and any number that deltas replaced.",
            "integer",
            "a number of versions, 0 for none",
            ge=0,
        ),
    ] = 1
    delta: Annotated[
        Literal["off", "on", "auto"],
        meaning.one_of(
            "Whether a source sends only what has changed to sinks that serve the version it has brought before, and "
            "keeps a published version for that; 'on' wherever sinks can take it, 'auto' where it is sooner, too.",
            "off",
            "on",
            "auto",
        ),
    ] = "off"
    delta_base: Annotated[
        Literal["auto", "host", "beside"],
        meaning.one_of(
            "Where a source keeps what it has published, for 'delta': 'host' copies each version there before it is "
            "sent, and takes memory for two; 'beside' sends tensors from where they lie, and keeps one copy on that "
            "device; 'auto' is 'beside' on a GPU that has room for two versions.",
            "auto",
            "host",
            "beside",
        ),
    ] = "auto"
    metrics: Annotated[
        str,
        meaning.text(
            "Serve metrics for Prometheus at this HOST:PORT, or at the next port that is free; none when empty.",
            "HOST:PORT",
        ),
    ] = ""
    history: Annotated[
        str,
        meaning.text(
            "The file that whoever leads updates appends to what became of each, for the dashboard; none when empty."
        ),
    ] = ""
    opentelemetry: Annotated[
        bool,
        meaning.setting(
            "Whether updates become OpenTelemetry spans, one trace from the trainer to all engines.",
            "true | false",
            "true or false",
        ),
    ] = False
    log_format: Annotated[
        Literal["", "text", "json"],
        meaning.one_of(
            "How log lines are written to standard error, one for each event, from level INFO; nothing is done about "
            "them when empty, so that Python writes warnings as they are.",
            "",
            "text",
            "json",
        ),
    ] = ""
    trace: Annotated[
        str, meaning.text("The file to write a Chrome or Perfetto trace of the update to; none when empty.")
    ] = ""
    transports: Annotated[
        Any,
        meaning.setting(
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
                values[key] = _DECLARED.convert(key, value, source)
                sources[key] = source

        if path is not None:
            for key, value in read_toml(path, file_source).items():
                take(key, value, f"in {path}")
        for variable, text in environ.items():
            source = f"in the environment variable {variable}"
            meant = meant_by(variable, _DECLARED.names)
            if isinstance(meant, tuple):
                own.add(*meant, Given(text, source, is_text=True))
            elif meant is not None:
                values[meant] = _DECLARED.convert(meant, text, source, is_text=True)
                sources[meant] = source
        for key, given in overrides.items():
            if given is not None:
                take(key, given, "in the arguments")
        check_together({**_DECLARED.defaults, **values}, sources)
        return msgspec.convert({**values, TRANSPORTS: own.chosen()}, prepared(cls))

    @classmethod
    def given(cls, config: Config | None) -> Config:
        """The settings that a caller has given; None for those of the environment.

        Raises:
            ConfigError: it is something else; or as :meth:`load`.
        """
        if config is None:
            return cls.load()
        if not isinstance(config, cls):
            raise ConfigError(f"config is {reprlib.repr(config)} and no Config; give Config.load(transport=...)")
        return config

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            checked = _DECLARED.convert(name, value, "in the arguments")
            if checked is not value:
                msgspec.structs.force_setattr(self, name, checked)
        check_together(msgspec.structs.asdict(self), {})


_DECLARED = Declared(Config)


def describe() -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of every setting, in order, for help texts and the reference."""
    return _DECLARED.describe()
