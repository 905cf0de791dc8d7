"""The documentation does what it says: its code runs, its links lead somewhere, its reference is current."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, broken_links, code, links, outside_nav, pages

PAGES = pages()


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if code(page)], ids=name)
def test_given_a_page_with_code_then_the_code_runs(page: Path, tmp_path: Path) -> None:
    program = tmp_path / f"{page.stem}.py"
    program.write_text(code(page) + "\n", encoding="utf-8")
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CKPT_TRANSPORT_")}
    environ["CKPT_TRANSPORT_HEARTBEAT_TIMEOUT"] = "60"  # nobody dies in them, however busy the machine is
    ran = subprocess.run(
        [sys.executable, program], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=250
    )
    assert ran.returncode == 0, f"{name(page)}\n{ran.stdout}\n{ran.stderr}"


QUOTED = re.compile(
    r"^<!-- no-run: part of (?:the example|examples/\S+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
EXAMPLES = {
    "write-a-transport.md": "third_party_transport/acme_pipes/transport.py",
    "write-an-engine-adapter.md": "engine_adapter/acme_adapter.py",
}


@pytest.mark.parametrize("guide", EXAMPLES)
def test_given_quotations_of_an_example_then_they_are_its_own_lines(guide: str) -> None:
    example = (ROOT / "examples" / EXAMPLES[guide]).read_text(encoding="utf-8")
    quotations = QUOTED.findall((ROOT / "docs" / "how-to" / guide).read_text(encoding="utf-8"))
    assert quotations
    for quotation in quotations:
        left = iter(line.strip() for line in example.splitlines())
        missing = [line for line in map(str.strip, quotation.splitlines()) if line and line not in left]
        assert not missing, f"not in the example, or in another order: {missing[0]}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_given_a_page_when_its_links_are_followed_then_each_leads_somewhere(page: Path) -> None:
    assert not broken_links(page)


def test_given_broken_links_when_they_are_followed_then_each_is_found(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.md").write_text("# A heading\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#a-heading) [b](gone.md) [c](other.md#gone) [d](folder) [e](/etc/hostname) [f](#gone)\n"
    )
    found = broken_links(page, tmp_path)
    assert [link.partition(":")[0] for link in found] == [
        "gone.md",
        "other.md#gone",
        "folder",
        "/etc/hostname",
        "#gone",
    ]


def test_given_the_navigation_of_the_site_then_it_has_every_page() -> None:
    assert not outside_nav(PAGES), "give each a line under nav in mkdocs.yml"


def test_given_the_list_of_decisions_then_it_has_every_record() -> None:
    index = ROOT / "docs" / "index.md"
    listed = {(index.parent / link).resolve() for link in links(index)}
    assert not set((ROOT / "docs" / "adr").glob("0*.md")) - listed, "give each a line in docs/index.md"


def test_given_a_page_that_the_navigation_lacks_then_it_is_found(tmp_path: Path) -> None:
    (tmp_path / "mkdocs.yml").write_text("site_name: gone.md\nnav:\n  - Here: here.md\n  - Part:\n      - In: in.md\n")
    assert outside_nav([tmp_path / "here.md", tmp_path / "in.md", tmp_path / "gone.md"], tmp_path) == ["gone.md"]


def test_given_a_link_to_a_file_then_the_file_is_on_the_site() -> None:
    on_site = set(runpy.run_path(str(ROOT / "docs" / "build.py"))["on_site"]())
    targets = {
        (page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links(page) if link[0] != "#"
    }
    assert not targets - on_site, "give what pages link to a pattern in PARTS of docs/build.py"


def test_given_the_readme_when_links_are_followed_then_every_page_is_reached() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = ((page.parent / link.partition("#")[0]).resolve() for link in links(page))
        waiting += [target for target in targets if target.suffix == ".md"]
    assert not [name(page) for page in PAGES if page not in reached]


def test_given_the_code_then_the_reference_is_current() -> None:
    compared = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, timeout=250
    )
    assert compared.returncode == 0, f"run python docs/generate.py\n{compared.stdout}{compared.stderr}"
