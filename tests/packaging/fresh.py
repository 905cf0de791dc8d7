"""Installs a built wheel into a fresh environment of each Python, and runs the README's Python there.

Usage: ``python -m tests.packaging.fresh WHEEL VERSION...``, with versions as ``3.12``. A Python that this machine does
not have is skipped and named. Ends with 1 where an installation fails, and where there was none.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.docs.pages import ROOT, code

ENVIRONMENTS = ROOT / "build" / "release"
CONSTRAINTS = ROOT / "constraints.txt"
DEADLINE = 1800.0
"""Seconds for one command; most of an installation is the download of torch."""


def main(wheel: str, versions: Sequence[str]) -> int:
    """Try the wheel with each version."""
    program = ENVIRONMENTS / "readme.py"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(code(ROOT / "README.md") + "\n", encoding="utf-8")
    tried = failed = 0
    for version in versions:
        python, reasons = find(version)
        if not python:
            print(f"Python {version}: skipped: {'; '.join(reasons)}", flush=True)
            continue
        tried += 1
        began = time.monotonic()
        try:
            said = run_in_fresh_environment(python, wheel, program)
        except subprocess.SubprocessError as error:
            failed += 1
            print(f"Python {version}: FAILED: {error}", flush=True)
        else:
            print(f"Python {version}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
    return 1 if failed or not tried else 0


def find(version: str) -> tuple[str, list[str]]:
    """An interpreter of ``version``, or none and what each place where one may be said."""
    reasons = []
    for candidate in candidates(version):
        try:
            asked = subprocess.run([candidate, "--version"], capture_output=True, text=True, timeout=60)
        except OSError as error:
            reasons.append(f"{candidate}: {error.strerror}")
            continue
        if asked.returncode == 0 and asked.stdout.startswith(f"Python {version}."):
            return candidate, []
        said = (asked.stderr or asked.stdout).strip().splitlines() or [f"ended with {asked.returncode}"]
        reasons.append(f"{candidate}: {said[0]}")
    return "", reasons


def candidates(version: str) -> Iterator[str]:
    """Where an interpreter may be: on the path, and with pyenv."""
    yield f"python{version}"
    if shutil.which("pyenv"):
        prefix = subprocess.run(["pyenv", "prefix", version], capture_output=True, text=True, timeout=60)
        if prefix.returncode == 0:
            yield f"{prefix.stdout.strip()}/bin/python{version}"


def run_in_fresh_environment(python: str, wheel: str, program: Path) -> str:
    """Make an environment, install, run, and remove the environment.

    Returns:
        The versions of Python, library and torch, and what the README's program printed.

    Raises:
        SubprocessError: a command failed; what it printed is on this process's standard error.
    """
    folder = ENVIRONMENTS / Path(python).name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        inside = [str(folder / "bin" / "python"), "-I"]
        _run([python, "-m", "venv", str(folder)])
        _run([*inside, "-m", "pip", "install", "-q", "-c", str(CONSTRAINTS), wheel])
        _run([*inside, "-m", "pip", "check"])
        versions = _run([*inside, "-c", "import sys, torch; print(sys.version.split()[0], 'torch', torch.__version__)"])
        ours = _run([str(folder / "bin" / "ckpt-transport"), "--version"])
        return f"{versions}, {ours}, README: {_run([*inside, str(program)])}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: Sequence[str]) -> str:
    ran = subprocess.run(command, cwd=ENVIRONMENTS, capture_output=True, text=True, timeout=DEADLINE)
    if ran.returncode:
        print(ran.stdout, ran.stderr, sep="\n", file=sys.stderr)
        ran.check_returncode()
    return ran.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
