"""What the command line answers without having loaded what it works with."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

import ckpt_transport
from ckpt_transport.cli import app
from tests.patience import DEADLINE

ANSWERED = """
import sys
from ckpt_transport.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


def answered(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What a new interpreter says, which fails if torch was loaded for that."""
    command = [sys.executable, "-c", ANSWERED, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)


@pytest.mark.parametrize("command", ["", *(str(command.name) for command in app.app.registered_commands)])
def test_given_any_command_when_help_is_asked_for_then_torch_is_not_loaded(command: str) -> None:
    said = answered(*command.split(), "--help")
    assert (said.returncode, said.stderr) == (0, "")
    assert "Usage" in said.stdout


def test_given_the_version_option_then_it_says_what_is_installed() -> None:
    said = answered("--version")
    assert (said.returncode, said.stdout) == (0, f"ckpt-transport {metadata.version('ckpt-transport')}\n")
    assert ckpt_transport.__version__ == metadata.version("ckpt-transport")


def test_given_a_command_that_there_is_not_then_it_is_refused_at_once() -> None:
    said = answered("upgrade")
    assert said.returncode == 2
    assert "No such command 'upgrade'" in said.stderr
