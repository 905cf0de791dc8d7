"""What tests of plugins share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.unit.transports.distributions import Install, write_distribution


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts distributions on this process's path until the test ends."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def write(
        name: str,
        transports: Sequence[tuple[str, str]],
        modules: Mapping[str, str] | None = None,
        extras: Sequence[str] = (),
    ) -> None:
        write_distribution(site, name, transports, modules, extras)
        importlib.invalidate_caches()

    yield write
    for module in [name for name in sys.modules if name.startswith("mod_")]:
        del sys.modules[module]
