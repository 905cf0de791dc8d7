"""The documentation does what it says: its code runs, its links lead somewhere, its reference is current."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)

BLOCK = re.compile(r"^(?P<marker><!-- no-run: [^\n]+ -->\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
IN_LINE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code(page: Path) -> str:
    """All blocks that run, as one program whose line numbers are those of the page."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * text.count("\n")
    for block in BLOCK.finditer(text):
        if block["marker"] is None:
            first = text.count("\n", 0, block.start("code"))
            run = block["code"].splitlines()
            lines[first : first + len(run)] = run
    return "\n".join(lines).rstrip()


@pytest.mark.parametrize("page", [page for page in PAGES if code(page)], ids=name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    program = tmp_path / f"{page.stem}.py"
    program.write_text(code(page) + "\n", encoding="utf-8")
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CKPT_TRANSPORT_")}
    ran = subprocess.run(
        [sys.executable, program], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=100
    )
    assert ran.returncode == 0, f"{name(page)}\n{ran.stdout}\n{ran.stderr}"


QUOTED = re.compile(r"^<!-- no-run: part of the example -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_quotations_are_the_examples_own_lines() -> None:
    guide = (ROOT / "docs" / "how-to" / "write-a-transport.md").read_text(encoding="utf-8")
    example = (ROOT / "examples" / "third_party_transport" / "acme_pipes" / "transport.py").read_text(encoding="utf-8")
    quotations = QUOTED.findall(guide)
    assert quotations
    for quotation in quotations:
        left = iter(line.strip() for line in example.splitlines())
        missing = [line for line in map(str.strip, quotation.splitlines()) if line and line not in left]
        assert not missing, f"not in the example, or in another order: {missing[0]}"


def links(page: Path) -> Iterator[str]:
    text = IN_LINE.sub("", FENCED.sub("", page.read_text(encoding="utf-8")))
    return (found[1] for found in LINK.finditer(text) if "://" not in found[1])


def anchors(page: Path) -> set[str]:
    """The anchors of headings, as GitHub makes them."""
    headings = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} links to {link}, which is not there"
        assert target.is_relative_to(ROOT), f"{name(page)} links to {link}, outside the project"
        if anchor:
            assert anchor in anchors(target), f"{name(page)} links to {link}, which has no such heading"


def test_every_page_can_be_found() -> None:
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


def test_the_reference_is_current() -> None:
    compared = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert compared.returncode == 0, f"run python docs/generate.py\n{compared.stdout}{compared.stderr}"
