"""The wheel and the source distribution hold what they must, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Set
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(
    path.parent
    for folder in (".", "plugins", "adapters")
    for path in (ROOT / folder).glob("ckpt_transport*/__init__.py")
)
BESIDE = {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"}
WRITTEN_BY_HATCHLING = {".gitignore", "PKG-INFO"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    build = "import sys; from hatchling.build import *; build_wheel(sys.argv[1]); build_sdist(sys.argv[1])"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", build, folder], cwd=ROOT, env=environ, check=True, timeout=250)
    return folder


def sources(package: Path) -> Set[str]:
    """The files of a package, from its own folder on."""
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(package.parent)) for path in files}


def test_given_the_tree_when_packages_are_listed_then_each_is_shipped_and_marked_as_typed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(shipped) == sorted(str(package.relative_to(ROOT)) for package in PACKAGES)
    assert not [package.name for package in PACKAGES if not (package / "py.typed").is_file()]


def test_given_a_wheel_when_it_is_opened_then_it_holds_every_package_with_its_mark_and_nothing_else(
    built: Path,
) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == set().union(*map(sources, PACKAGES))
    assert {f"{package.name}/py.typed" for package in PACKAGES} <= held


def test_given_a_source_distribution_when_it_is_opened_then_it_holds_what_a_wheel_is_built_from(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    code = {str(package.relative_to(ROOT).parent / name) for package in PACKAGES for name in sources(package)}
    assert held == code | BESIDE | WRITTEN_BY_HATCHLING
