"""Given names that look like styles or emoji of a terminal, then commands print them as they are."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from ckpt_transport import Config
from ckpt_transport_torch import attach
from tests.patience import DEADLINE, PATIENT
from tests.support.commands import ENVIRONMENT, run

VERSION, LABEL, NEW = "step[/]:100:", "[red]engine[/bold]:100:", "[/red]step:101:[x]"
WIDE = {**ENVIRONMENT, "COLUMNS": "300"}


def test_given_names_with_brackets_and_colons_when_commands_tell_of_them_then_none_is_changed(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    save_file(module.state_dict(), tmp_path / "model[b].safetensors")
    with attach(module, version=VERSION, label=LABEL, config=Config.load(**PATIENT)) as served:

        def said_by(*arguments: object) -> str:
            done = run(*arguments, environ=WIDE)
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert f" {LABEL} │ {VERSION} " in said_by("version", "--timeout", DEADLINE, served.address)
        assert f"{LABEL} serves {VERSION}" in said_by("doctor", "--timeout", DEADLINE, served.address)
        checkpoint = ("--checkpoint", tmp_path / "model[b].safetensors", "--version", NEW)
        told = said_by("update", *checkpoint, "--sink", served.address)
        assert "reading model[b].safetensors: " in told
        assert f"updating to {NEW}: " in told
        assert f"{NEW} is served by 1 sink" in told
        assert f" {LABEL} │ {NEW} " in said_by("version", "--timeout", DEADLINE, served.address)


def test_given_an_ipv6_address_when_a_command_tells_of_it_then_it_is_whole() -> None:
    address = "tcp://[fe80::1:100:2]:7000"
    done = run("version", "--timeout", 0.1, address, environ={**WIDE, "CKPT_TRANSPORT_INSECURE": "true"})
    assert f"ConfigError: {address} can be reached from other hosts" in done.stderr
    done = run("version", "--timeout", 0.1, "tcp://[a1::1]:7000", environ=WIDE)
    assert "tcp://[a1::1]:7000" in done.stderr
