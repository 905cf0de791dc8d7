"""Updates of sinks that listen at an IPv6 address."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer, ask_version
from tests.addresses import has_ipv6
from tests.fleet import SinkSpec, fleet, weights
from tests.leftovers import left_behind
from tests.patience import DEADLINE, PATIENT


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_a_sink_at_an_ipv6_address_when_it_is_updated_then_it_serves_the_new_version(
    tmp_path: Path, transport: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(secrets.token_hex(16))
    secret.chmod(0o600)
    settings: dict[str, Any] = {"secret_file": str(secret), "interface": "::1"}
    config = Config.load(transport=transport, **PATIENT, **settings)
    with fleet(SinkSpec(address="tcp://[::1]:0", settings=settings)) as (sink,), ParameterServer(config) as server:
        assert sink.address.startswith("tcp://[::1]:")
        server.register("v2", tensors=weights(2))
        server.update("v2", [sink.address])
        assert sink.state().holds(weights(2))
        assert ask_version(sink.address, config, timeout=DEADLINE).version == "v2"
    assert not left_behind()
