"""Settings: which source wins, and what a wrong one is told."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from ckpt_transport.config import Config, describe
from ckpt_transport.errors import ConfigError

MIB = 1024**2


def load(text: str | None, tmp_path: Path, environ: dict[str, str] | None = None, **overrides: object) -> Config:
    """Load from a file with this text (none when None) and an environment that is otherwise empty."""
    path = None
    if text is not None:
        path = tmp_path / "settings.toml"
        path.write_text(text)
    return Config.load(path, environ or {}, **overrides)


# -- sources --------------------------------------------------------------------------------------------------------


def test_given_no_source_at_all_then_the_defaults_hold() -> None:
    config = Config.load(environ={})

    assert config == Config()
    assert config.transport == "auto"
    assert config.bucket_bytes == 64 * MIB
    assert config.sinks == ()


def test_given_an_argument_then_it_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    # Given a file with three settings, an environment with two of them, and an argument for one
    text = "ring_depth = 2\nread_threads = 2\nupdate_timeout = 2"
    environ = {"CKPT_TRANSPORT_READ_THREADS": "3", "CKPT_TRANSPORT_UPDATE_TIMEOUT": "3"}

    # When
    config = load(text, tmp_path, environ, update_timeout=4.5, join_timeout=None)

    # Then each comes from the highest source that has it, and None means "not given"
    assert (config.ring_depth, config.read_threads, config.update_timeout) == (2, 3, 4.5)
    assert config.join_timeout == 30.0


def test_given_the_environment_then_it_can_name_the_file_and_an_argument_beats_it(tmp_path: Path) -> None:
    # Given two files, one of them named by the environment
    (tmp_path / "named.toml").write_text("ring_depth = 7")
    (tmp_path / "given.toml").write_text("ring_depth = 8")
    environ = {"CKPT_TRANSPORT_CONFIG": str(tmp_path / "named.toml")}

    # When and then
    assert Config.load(environ=environ).ring_depth == 7
    assert Config.load(tmp_path / "given.toml", environ).ring_depth == 8


def test_given_no_environment_then_that_of_the_process_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_TRANSPORT_TRANSPORT", "gloo+shm")

    assert Config.load().transport == "gloo+shm"


def test_given_every_kind_of_value_then_each_can_be_written_in_every_source(tmp_path: Path) -> None:
    # Given the same settings three times
    text = """
        bucket_bytes = "1GiB"
        heartbeat_timeout = 9
        sinks = ["ipc:///run/a.sock", "tcp://host:5555"]
        pool = "private"
        insecure = true
    """
    environ = {
        "CKPT_TRANSPORT_BUCKET_BYTES": "1073741824",
        "CKPT_TRANSPORT_HEARTBEAT_TIMEOUT": "9.0",
        "CKPT_TRANSPORT_SINKS": "ipc:///run/a.sock, tcp://host:5555",
        "CKPT_TRANSPORT_POOL": "private",
        "CKPT_TRANSPORT_INSECURE": "true",
    }

    # When
    from_file = load(text, tmp_path)
    from_environment = load(None, tmp_path, environ)
    from_arguments = load(
        None,
        tmp_path,
        bucket_bytes="1024MiB",
        heartbeat_timeout=9,
        sinks=["ipc:///run/a.sock", "tcp://host:5555"],
        pool="private",
        insecure=True,
    )

    # Then they are the same
    assert from_file == from_environment == from_arguments
    assert from_file.bucket_bytes == 1024 * MIB
    assert from_file.sinks == ("ipc:///run/a.sock", "tcp://host:5555")
    assert hash(from_file) == hash(from_arguments)


def test_given_variables_of_other_programs_then_they_are_left_alone(tmp_path: Path) -> None:
    # Given what Kubernetes puts into every pod beside a service called ckpt-transport
    environ = {
        "CKPT_TRANSPORT_SERVICE_HOST": "10.0.0.7",
        "CKPT_TRANSPORT_SERVICE_PORT": "5555",
        "CKPT_TRANSPORT_SERVICE_PORT_HTTP": "5555",
        "CKPT_TRANSPORT_PORT": "tcp://10.0.0.7:5555",
        "CKPT_TRANSPORT_PORT_5555_TCP": "tcp://10.0.0.7:5555",
        "CKPT_TRANSPORT_PORT_5555_TCP_ADDR": "10.0.0.7",
        "CKPT_TRANSPORT_SOURCE_SERVICE_HOST": "10.0.0.8",
        "PATH": "/usr/bin",
    }

    # When and then
    assert load(None, tmp_path, environ) == Config()


# -- unknown settings -----------------------------------------------------------------------------------------------


def test_given_an_unknown_key_in_the_file_then_it_is_named_with_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load("bucket_byte = 1", tmp_path)

    message = str(caught.value)
    assert f"unknown setting 'bucket_byte' in {tmp_path / 'settings.toml'}; did you mean 'bucket_bytes'?" in message
    assert all(name in message for name, *_ in describe())


@pytest.mark.parametrize("variable", ["CKPT_TRANSPORT_RING_DEPHT", "CKPT_TRANSPORT_ring_depth"])
def test_given_an_unknown_variable_then_it_is_named_with_what_was_meant(tmp_path: Path, variable: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, tmp_path, {variable: "3"})

    assert f"unknown environment variable {variable}; did you mean CKPT_TRANSPORT_RING_DEPTH?" in str(caught.value)


def test_given_an_unknown_argument_that_is_like_nothing_then_it_gets_no_guess(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'zzz' in the arguments\. Settings: transport, "):
        load(None, tmp_path, zzz=1)


# -- wrong values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transport", ""),
        ("transport", "gloo+"),
        ("transport", 3),
        ("bucket_bytes", 0),
        ("bucket_bytes", -1),
        ("bucket_bytes", "64 furlongs"),
        ("bucket_bytes", "0.3B"),
        ("bucket_bytes", 1.5),
        ("bucket_bytes", True),
        ("ring_depth", 0),
        ("ring_depth", "four"),
        ("memory_budget", "some"),
        ("join_timeout", 0),
        ("join_timeout", math.nan),
        ("update_timeout", math.inf),
        ("update_timeout", -5),
        ("sinks", "tcp://host:1"),
        ("sinks", ["http://host:1"]),
        ("sinks", [1]),
        ("coordinator", "host:5555"),
        ("interface", ""),
        ("pool", "pinned"),
        ("read_threads", -1),
        ("trace", 1),
    ],
)
def test_given_a_wrong_value_then_it_is_told_what_is_expected_and_what_the_setting_means(
    name: str, value: object
) -> None:
    # When it is given as an argument
    with pytest.raises(ConfigError) as caught:
        Config.load(None, {}, **{name: value})

    # Then setting, source, value, expectation and meaning are in the message
    message = str(caught.value)
    meaning = next(description for setting, _, _, description in describe() if setting == name)
    given = f"{value[0]!r} was given as number 1 of 1" if isinstance(value, list) else f"{value!r} was given"
    assert message.startswith(f"bad value for '{name}' in the arguments: {given}, and ")
    assert " is expected. " in message
    assert message.endswith(meaning)

    # And a Config made directly refuses it too
    with pytest.raises(ConfigError, match=f"bad value for '{name}'"):
        Config(**{name: value})  # type: ignore[arg-type]


def test_given_a_wrong_value_then_it_names_its_file_or_its_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as from_file:
        load("ring_depth = 'deep'", tmp_path)
    with pytest.raises(ConfigError) as from_environment:
        load(None, tmp_path, {"CKPT_TRANSPORT_RING_DEPTH": ""})

    assert f"'ring_depth' in {tmp_path / 'settings.toml'}: 'deep' was given" in str(from_file.value)
    assert "in the environment variable CKPT_TRANSPORT_RING_DEPTH: '' was given" in str(from_environment.value)


def test_given_a_timeout_shorter_than_a_heartbeat_then_it_is_refused(tmp_path: Path) -> None:
    # Given an interval from the environment that is longer than the default time-out
    environ = {"CKPT_TRANSPORT_HEARTBEAT_INTERVAL": "5"}

    # When and then
    with pytest.raises(ConfigError, match="must be longer than 'heartbeat_interval'") as caught:
        load(None, tmp_path, environ)
    assert "CKPT_TRANSPORT_HEARTBEAT_INTERVAL" in str(caught.value)
    with pytest.raises(ConfigError, match="heartbeat_timeout"):
        Config(heartbeat_timeout=0.1)


# -- files that cannot be used --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("ring_depth = 2\nsinks = [", 2, id="ends too early"),
        pytest.param("ring_depth = 2\n\npool = shared\n", 3, id="no quotes"),
        pytest.param("ring_depth = 2\nring_depth = 3\n", 2, id="twice"),
    ],
)
def test_given_a_file_that_is_not_toml_then_it_is_named_with_the_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text, tmp_path)

    assert str(caught.value).startswith(f"{tmp_path / 'settings.toml'}, line {line}: not valid TOML: ")


def test_given_a_file_that_is_not_there_then_it_is_named_with_who_named_it(tmp_path: Path) -> None:
    path = tmp_path / "missing.toml"

    with pytest.raises(ConfigError) as caught:
        Config.load(environ={"CKPT_TRANSPORT_CONFIG": str(path)})

    assert str(caught.value) == (
        f"cannot read the configuration file {path} (named by CKPT_TRANSPORT_CONFIG): No such file or directory"
    )


def test_given_a_file_that_begins_with_a_byte_order_mark_then_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("ring_depth = 2", encoding="utf-8-sig")
    assert Config.load(path, environ={}).ring_depth == 2


def test_given_a_file_that_is_not_text_then_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"trace = '\xff'")

    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        Config.load(path, {})


# -- the value itself -----------------------------------------------------------------------------------------------


def test_given_a_config_then_it_cannot_be_changed_and_a_changed_copy_is_checked() -> None:
    config = Config(ring_depth=2)

    with pytest.raises(AttributeError):
        config.ring_depth = 3  # type: ignore[misc]
    assert msgspec.structs.replace(config, ring_depth=3).ring_depth == 3
    with pytest.raises(ConfigError):
        msgspec.structs.replace(config, ring_depth=0)


def test_given_the_settings_then_each_is_described_in_one_sentence() -> None:
    rows = {name: (kind, default, description) for name, kind, default, description in describe()}

    assert tuple(rows) == Config.__struct_fields__
    assert rows["bucket_bytes"][:2] == ("size", "64 MiB")
    assert rows["pool"][:2] == ("auto | shared | private", "auto")
    for kind, _, description in rows.values():
        assert kind
        assert description.endswith(".")
        assert description.count(".") == 1


# -- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", ["on", "auto"])
def test_given_deltas_and_a_commit_in_place_then_the_error_names_both_and_where_they_came_from(delta: str) -> None:
    with pytest.raises(ConfigError, match=rf"'delta' is '{delta}' and 'commit' is 'in_place': .* set commit to 'auto'"):
        Config(delta=delta)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'delta' in the environment variable CKPT_TRANSPORT_DELTA"):
        Config.load(environ={"CKPT_TRANSPORT_DELTA": delta})
    assert Config.load(environ={"CKPT_TRANSPORT_DELTA": delta, "CKPT_TRANSPORT_COMMIT": "auto"}).delta == delta


def test_given_a_list_in_which_one_thing_is_wrong_then_the_error_names_it_and_not_the_list() -> None:
    with pytest.raises(ConfigError, match="'tcp:/x' was given as number 2 of 2, and a list of addresses") as refused:
        Config.load(sinks=["ipc:///tmp/a", "tcp:/x"])
    assert "ipc:///tmp/a" not in str(refused.value)
