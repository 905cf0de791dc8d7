"""Turns docstrings into Markdown: prose, sections, drawings and tables."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

NOTICE = "<!-- Written by docs/generate.py from the code. Do not edit. -->"
SECTIONS = ("Args", "Attributes", "Raises", "Returns")


def page(title: str, *parts: str) -> str:
    """A page that says that it is generated."""
    return "\n\n".join([NOTICE, f"# {title}", *(part for part in parts if part)]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def inline(text: str) -> str:
    """Text of a docstring, with its roles and literals as code."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?([\w]+)`", r"`\1`", text)
    return re.sub(r"``(.+?)``", r"`\1`", text)


def flat(text: str) -> str:
    """Text of a docstring as one line."""
    return inline(" ".join(text.split()))


def prose(doc: str) -> str:
    """A docstring as markdown: roles become code, sections become lists, drawn tables become tables."""
    blocks: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(doc)):
        lines = block.split("\n")
        first, _, rest = lines[0].partition(":")
        if block.strip() == "::":
            continue
        if lines[0].startswith("===="):
            blocks.append(_drawn_table(lines))
        elif block.startswith("    "):
            blocks.append(f"```text\n{textwrap.dedent(block)}\n```")
        elif first in SECTIONS and not rest.strip():
            blocks.append(f"**{first}**\n\n" + "\n".join(f"- {item}" for item in items(lines[1:])))
        elif first in SECTIONS:
            blocks.append(f"**{first}** {flat(' '.join([rest, *lines[1:]]))}")
        else:
            blocks.append(inline(block.removesuffix(":") if block.endswith("::") else block))
    return "\n\n".join(blocks)


def _drawn_table(lines: Sequence[str]) -> str:
    """A table that is drawn between lines of ``=``; a row without a first cell goes on with the row above it."""
    columns = [slice(found.start(), found.end()) for found in re.finditer("=+", lines[0])]
    columns[-1] = slice(columns[-1].start, None)
    rows: list[list[str]] = []
    for line in lines[1:]:
        if not line.startswith("="):
            cells = [inline(line[column].strip()) for column in columns]
            if cells[0]:
                rows.append(cells)
            else:
                rows[-1] = [f"{above} {more}".strip() for above, more in zip(rows[-1], cells, strict=True)]
    return table(rows[0], rows[1:])


def items(lines: Sequence[str]) -> Iterator[str]:
    """The entries of a section; each begins at the indentation of the first."""
    text = textwrap.dedent("\n".join(lines))
    for entry in re.split(r"\n(?=\S)", text):
        name, colon, meaning = entry.partition(": ")
        if colon and re.fullmatch(r"[\w, ]+", name):
            yield f"`{name}`: {flat(meaning)}"
        else:
            yield flat(entry)
