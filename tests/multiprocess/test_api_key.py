"""Engines that want an API key are driven with the one in a file, which nobody else gets to see."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import EngineError
from ckpt_transport_vllm import VllmFleet
from tests.fleet import weights
from tests.patience import PATIENT
from tests.support.commands import ENVIRONMENT, run
from tests.unit.control.test_rotation import keep
from tests.vllm_stub import StubServer

KEY = "sk-a-key-that-nobody-may-see"


def test_given_an_engine_that_wants_a_key_on_every_route_then_commands_drive_it_and_say_nothing_of_the_key(
    tmp_path: Path,
) -> None:
    environ = {**ENVIRONMENT, "CKPT_TRANSPORT_API_KEY_FILE": str(keep(KEY + "\n", tmp_path / "key"))}
    with StubServer(Config.load(**PATIENT), api_key=KEY) as engine:
        there = ("--engine", "vllm", "--endpoint", engine.url)
        staged = ("--commit", "staged")
        for seed in (2, 3):
            save_file(weights(seed), path := tmp_path / f"v{seed}.safetensors")
            done = run("update", "--checkpoint", path, "--version", f"v{seed}", *there, *staged, environ=environ)
            assert done.returncode == 0, done.stderr
        ends = [
            run("rollback", *there, environ=environ),
            run("doctor", *there, environ=environ),
            run("update", "--checkpoint", path, "--version", "v4", *there),
        ]
        assert [end.returncode for end in ends] == [0, 0, 1]
        assert f"{engine.url} wants an API key" in ends[-1].stderr
        assert "api_key_file" in ends[-1].stderr
        assert not any(KEY in end.stdout + end.stderr for end in ends)
        assert {"/pause", "/resume", "/collective_rpc", "/update_weight_version", "/reset_prefix_cache"} <= set(
            engine.asked
        )
        assert (engine.label, engine.paused) == ("v2", False)


def test_given_a_fleet_when_the_key_is_changed_then_it_goes_on_with_the_new_one_and_no_log_has_either(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = keep(KEY, tmp_path / "key")
    settings: dict[str, Any] = {**PATIENT, "api_key_file": str(path)}
    config = Config.load(**settings)
    with (
        caplog.at_level(logging.DEBUG),
        StubServer(config, api_key=KEY) as engine,
        ParameterServer(config) as server,
        VllmFleet([engine.url], config) as fleet,
    ):
        server.register("v2", tensors=weights(2))
        fleet.update(server, "v2")
        engine.api_key = "sk-the-next"
        with pytest.raises(EngineError, match="wants an API key") as refused:
            fleet.update(server, "v2")
        keep("sk-the-next", path)
        fleet.update(server, "v2")
    assert engine.label == "v2"
    assert KEY not in caplog.text + repr(refused.value)
    assert "sk-the-next" not in caplog.text
