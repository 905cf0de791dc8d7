"""Settings that a transport has of its own: from every source, checked, and given to the transport."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ckpt_transport import Config
from ckpt_transport.errors import ConfigError, TransportNotFoundError
from ckpt_transport.transports import options, registry
from ckpt_transport_mooncake import MooncakeOptions, MooncakeTransport

PLUGIN = """
from typing import Annotated
import msgspec
from ckpt_transport.transports.interface import Availability, FanOut, Reach, Traits, Transport

class Options(msgspec.Struct, frozen=True, kw_only=True):
    lanes: Annotated[int, msgspec.Meta(ge=1, description="How many lanes.")] = 1
    rails: tuple[str, ...] = ()

class Plugin(Transport):
    name = "acme-rails"
    traits = Traits(reach=Reach.HOST, sends_from=frozenset(), maps_memory=True, fan_out=FanOut.LINEAR, bandwidth=1,
                    latency=0)
    options_type = Options

    @classmethod
    def probe(cls):
        return Availability(True)

    def open(self, group, control, timeout):
        raise NotImplementedError
"""


def load(text: str, tmp_path: Path, environ: dict[str, str] | None = None, **overrides: object) -> Config:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return Config.load(path, environ or {}, **overrides)


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's transport, installed for the test."""
    site = tmp_path / "site"
    info = site / "acme_rails-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-rails\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ckpt_transport.transports]\nacme-rails = mod_acme_rails:Plugin\n")
    (site / "mod_acme_rails.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(site))


# -- sources --------------------------------------------------------------------------------------------------------


def test_given_environment_file_and_arguments_then_each_overrules_the_one_before_one_by_one(tmp_path: Path) -> None:
    text = "[transports.mooncake]\nprotocol = 'rdma'\ndevices = 'mlx5'\naddress = '10.0.0.1'"
    environ = {"CKPT_TRANSPORT_MOONCAKE_DEVICES": "=mlx5_1", "CKPT_TRANSPORT_MOONCAKE_ADDRESS": "10.0.0.2"}

    config = load(text, tmp_path, environ, transports={"mooncake": {"address": "10.0.0.3"}})

    expected = MooncakeOptions(protocol="rdma", devices="=mlx5_1", address="10.0.0.3")
    assert dict(config.transports) == {"mooncake": expected}
    assert hash(config) == hash(Config(transports={"mooncake": expected}))


def test_given_options_then_the_transport_gets_them_and_without_any_its_defaults() -> None:
    config = Config(transports={"mooncake": {"protocol": "tcp"}})

    made = registry.make("mooncake", config.transports)

    assert isinstance(made, MooncakeTransport)
    assert made.options == MooncakeOptions(protocol="tcp")
    assert registry.make("gloo", config.transports).options == registry.load("gloo").options_type()
    assert MooncakeTransport().options == MooncakeOptions()


@pytest.mark.usefixtures("acme")
def test_given_a_third_partys_transport_then_it_has_settings_too_and_text_becomes_what_it_declares() -> None:
    environ = {"CKPT_TRANSPORT_ACME_RAILS_LANES": "3", "CKPT_TRANSPORT_ACME_RAILS_RAILS": "left, right"}

    made = registry.make("acme-rails", Config.load(environ=environ).transports)

    assert msgspec.structs.asdict(made.options) == {"lanes": 3, "rails": ("left", "right")}
    described = list(options.describe(registry.load("acme-rails")))
    assert described == [("lanes", "1", "How many lanes."), ("rails", "()", "")]


# -- what is refused ------------------------------------------------------------------------------------------------


def test_given_an_unknown_setting_then_it_is_named_with_its_source_and_the_likely_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load("[transports.mooncake]\nprotocl = 'tcp'", tmp_path)

    assert str(caught.value) == (
        f"unknown setting 'protocl' of transport 'mooncake' in {tmp_path / 'settings.toml'}; did you mean 'protocol'? "
        "Settings: protocol, devices, address"
    )


def test_given_a_wrong_value_then_it_is_named_with_its_source_and_what_is_expected() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(environ={"CKPT_TRANSPORT_MOONCAKE_PROTOCOL": "rmda"})

    text = str(caught.value)
    assert "'protocol' of transport 'mooncake' in the environment variable CKPT_TRANSPORT_MOONCAKE_PROTOCOL" in text
    assert "'rmda' was given" in text
    assert "RDMA where every member" in text


@pytest.mark.usefixtures("acme")
def test_given_a_value_outside_the_declared_range_then_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="'lanes' of transport 'acme-rails' in the arguments: 0 was given"):
        Config(transports={"acme-rails": {"lanes": 0}})


def test_given_a_transport_without_settings_then_it_says_so() -> None:
    with pytest.raises(ConfigError, match="transport 'gloo' has no settings of its own, and 'threads' was given in"):
        Config(transports={"gloo": {"threads": 2}})


def test_given_settings_of_a_transport_that_is_not_installed_then_they_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TransportNotFoundError, match="did you mean 'mooncake'"):
        load("[transports.moncake]\nprotocol = 'tcp'", tmp_path)
    with pytest.raises(ConfigError, match="CKPT_TRANSPORT_MONCAKE_PROTOCOL"):
        Config.load(environ={"CKPT_TRANSPORT_MONCAKE_PROTOCOL": "tcp"})


@pytest.mark.parametrize("text", ["transports = 'mooncake'", "[transports]\nmooncake = 'tcp'"])
def test_given_what_is_no_table_then_it_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="table"):
        load(text, tmp_path)
