"""The wheel and the source distribution hold what they must, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Set
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from tests.docs.pages import LINK

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


@pytest.fixture(scope="module")
def metadata(built: Path) -> Message:
    """What a registry shows of the wheel; its payload is the page."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


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


def test_given_the_page_of_a_registry_when_its_links_are_followed_then_each_leads_to_a_file_of_this_release(
    metadata: Message,
) -> None:
    links = LINK.findall(str(metadata.get_payload()))
    assert not [link for link in links if not re.match("https://|#", link)]
    home = re.compile(rf"https://\S+/ckpt-transport/(?:blob/)?v{re.escape(metadata['Version'])}/([^#]+)")
    ours = [found[1] for link in links if (found := home.match(link))]
    assert len(ours) > 10
    assert not [path for path in ours if not (ROOT / path).is_file()]


def test_given_a_wheel_then_it_says_who_made_it_where_it_is_and_on_which_python_it_runs(metadata: Message) -> None:
    assert metadata["Author"]
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL", ()))
    assert urls.keys() == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    tried = re.search(r"^RELEASE_PYTHONS \?= (.*)$", makefile, re.MULTILINE)
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(metadata.get_all("Classifier", ())))
    assert tried
    assert named == tried[1].split()


def test_given_a_version_then_the_citation_names_the_same(metadata: Message) -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [metadata["Version"]]


def test_given_a_source_distribution_when_it_is_opened_then_it_holds_what_a_wheel_is_built_from(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    code = {str(package.relative_to(ROOT).parent / name) for package in PACKAGES for name in sources(package)}
    assert held == code | BESIDE | WRITTEN_BY_HATCHLING
