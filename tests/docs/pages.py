"""The pages of the documentation: what code they hold, where their links lead, and which the site shows.

``python -m tests.docs.pages PAGE`` prints the Python code of a page as one program.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "examples", "benchmarks/results")

BLOCK = re.compile(r"^(?P<marker><!-- no-run: [^\n]+ -->\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
IN_LINE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
NAV = re.compile(r"^nav:\n((?:[ ].*\n|\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^ +- .*: (\S+\.md)$", re.MULTILINE)


def pages(root: Path = ROOT) -> list[Path]:
    """Every page of the tree at ``root``."""
    return sorted([*root.glob("*.md"), *(page for folder in FOLDERS for page in (root / folder).rglob("*.md"))])


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


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links within the project, as they are written."""
    text = IN_LINE.sub("", FENCED.sub("", page.read_text(encoding="utf-8")))
    return (found[1] for found in LINK.finditer(text) if "://" not in found[1])


def anchors(page: Path) -> set[str]:
    """The anchors of headings, as GitHub makes them."""
    headings = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, root: Path = ROOT) -> list[str]:
    """Each link of a page that leads nowhere, with the reason."""
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(f"{link}: it is not there")
        elif not target.is_relative_to(root):
            broken.append(f"{link}: it is outside the project")
        elif target.is_dir():
            broken.append(f"{link}: it is a folder, which the site cannot show; link to a file in it")
        elif anchor and anchor not in anchors(target):
            broken.append(f"{link}: that page has no such heading")
    return broken


def outside_nav(found: Sequence[Path], root: Path = ROOT) -> list[str]:
    """Each of the pages ``found`` that has no place in the navigation of the site, as ``mkdocs.yml`` gives it."""
    nav = NAV.search((root / "mkdocs.yml").read_text(encoding="utf-8"))
    named = set(ENTRY.findall(nav[1])) if nav else set()
    return [name for page in found if (name := str(page.relative_to(root))) not in named]


if __name__ == "__main__":
    print(code(Path(sys.argv[1])))
