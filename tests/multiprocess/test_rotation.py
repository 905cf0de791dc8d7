"""The shared secret is replaced while sources and sinks run, and nobody is restarted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer, ask_version
from ckpt_transport.errors import JoinError
from tests.fleet import SinkSpec, fleet, weights
from tests.patience import DEADLINE, PATIENT
from tests.unit.control.test_rotation import keep


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_a_fleet_that_serves_when_its_secret_is_replaced_then_the_next_update_uses_the_new_one(
    tmp_path: Path, transport: str
) -> None:
    secret, kept = tmp_path / "secret", tmp_path / "kept"
    for path in (secret, kept):
        keep("correct horse battery staple", path)
    settings: dict[str, Any] = {**PATIENT, "secret_file": str(secret)}
    config = Config.load(transport=transport, **settings)
    spec = SinkSpec(address="tcp://127.0.0.1:0", settings=settings)
    with fleet(spec, spec) as sinks, ParameterServer(config) as server:
        addresses = [sink.address for sink in sinks]
        server.register("v2", tensors=weights(2))
        server.update("v2", addresses)
        keep("another horse battery staple", secret)
        server.register("v3", tensors=weights(3))
        server.update("v3", addresses)
        assert all(sink.state().holds(weights(3)) for sink in sinks)
        for address in addresses:
            assert ask_version(address, config, DEADLINE).version == "v3"
            with pytest.raises(JoinError):
                ask_version(address, Config.load(**{**settings, "secret_file": str(kept)}), 0.5)
        server.update("v2", addresses)
