"""A transport of another distribution: installed beside the library, it is listed, conforms, and updates a module."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_transport"
NAME = "acme-tcp"

SERVE = """
import sys
import torch
from safetensors.torch import load_file
from ckpt_transport_torch import attach

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.Linear(200, 1)).to(torch.bfloat16)
with attach(model, version="old") as served:
    print(served.address, flush=True)
    for path in sys.stdin:
        wanted = load_file(path.strip())
        equal = all(torch.equal(have.view(torch.uint8), wanted[name].view(torch.uint8))
                    for name, have in model.state_dict().items())
        print(served.version if equal else "differs", flush=True)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of a new environment with the example in it. What this one has installed is seen there too."""
    home = tmp_path_factory.mktemp("third-party")
    environment = home / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=250)
    interpreter = str(environment / "bin" / "python")
    (site,) = (environment / "lib").glob("python*/site-packages")
    parent = sysconfig.get_path("purelib")
    (site / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")
    source = shutil.copytree(EXAMPLE, home / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [interpreter, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    if importlib.util.find_spec("hatchling") is not None:
        command += ["--no-build-isolation", "--no-index"]  # without it, pip fetches it, as it would for anybody
    subprocess.run([*command, source], check=True, timeout=250)
    return interpreter


def _environ(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CKPT_TRANSPORT_", "PYTHON"))}
    settings = {"HEARTBEAT_TIMEOUT": "60", **settings}
    return {**kept, **{f"CKPT_TRANSPORT_{name}": value for name, value in settings.items()}}


def _run(*command: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=250, cwd="/", env=_environ(**settings))


@contextmanager
def _serving(python: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [python, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environ()
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(120)
            finally:
                process.kill()


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_given_a_third_partys_transport_then_it_is_installed_there_and_not_here(python: str) -> None:
    assert importlib.util.find_spec("acme_pipes") is None
    assert _run(python, "-c", "import acme_pipes").returncode == 0


def test_given_a_third_partys_transport_then_it_is_listed_like_any_other(python: str) -> None:
    listed = _run(python, "-m", "ckpt_transport", "transports", "--json")
    assert listed.returncode == 0, listed.stderr
    found = {entry["name"]: entry for entry in json.loads(listed.stdout)}
    assert {"gloo", "shm", NAME} <= found.keys()
    assert found[NAME]["available"]
    assert found[NAME]["traits"]["reach"] == "network"


def test_given_a_third_partys_transport_then_it_keeps_the_promises_of_the_interface(python: str) -> None:
    checked = _run(python, "-m", "ckpt_transport.testing", NAME)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("by", ["environment", "file", "option"])
def test_given_a_third_partys_transport_then_it_updates_a_module_of_another_process(
    python: str, tmp_path: Path, by: str
) -> None:
    torch.manual_seed(1)
    new = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.Linear(200, 1)).to(torch.bfloat16).state_dict()
    save_file(new, tmp_path / "model.safetensors")
    toml = tmp_path / "settings.toml"
    toml.write_text(
        textwrap.dedent(
            f"""
            {f'transport = "{NAME}"' if by == "file" else ""}
            bucket_bytes = "64KiB"
            """
        )
    )
    chosen = {"TRANSPORT": NAME} if by == "environment" else {}
    arguments = ["--transport", NAME] if by == "option" else []
    with _serving(python) as server:
        address = _hear(server)
        command: list[str | Path] = [
            "update",
            "--checkpoint",
            tmp_path,
            "--version",
            "new",
            "--sink",
            address,
            "--config",
            toml,
        ]
        updated = _run(python, "-m", "ckpt_transport", *command, *arguments, **chosen)
        assert updated.returncode == 0, updated.stderr
        assert f"over {NAME}" in updated.stdout
        _say(server, str(tmp_path / "model.safetensors"))
        assert _hear(server) == "new"


def test_given_no_third_partys_transport_then_its_name_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(4)}, tmp_path / "model.safetensors")
    command: list[str | Path] = [
        "update",
        "--checkpoint",
        tmp_path,
        "--version",
        "new",
        "--sink",
        f"ipc://{tmp_path}/nobody",
    ]
    refused = _run(sys.executable, "-m", "ckpt_transport", *command, TRANSPORT=NAME)
    assert refused.returncode == 1
    assert "TransportNotFoundError" in refused.stderr
    assert all(known in refused.stderr for known in ("gloo", "shm"))
