"""Pages about Python modules: what users import, and what authors of transports and engines do."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from importlib import import_module

from ckpt_transport import spi
from docs.described import described, is_error, note, public_names
from docs.rendering import flat, page, prose, table


def api(title: str, modules: Iterable[tuple[str, str]]) -> Callable[[], str]:
    """A page with the public names of modules, or with those that are named. Errors have a page of their own."""

    def make() -> str:
        parts = []
        for name, chosen in modules:
            module = import_module(name)
            parts.append(f"## Module `{name}`")
            if not chosen:
                parts.append(prose(module.__doc__ or ""))
            for public in chosen.split() or public_names(module):
                if not is_error(getattr(module, public)):
                    parts += described(public, getattr(module, public), module)
        return page(title, *parts)

    return make


IN_FULL = ("ckpt_transport.transports", "ckpt_transport.memory.buffer", "ckpt_transport.service.fleet")
"""Homes of what authors implement and are given. Of other names a sentence says what each is."""
NOT_IN_FULL = "ckpt_transport.transports.rdma"


def for_authors() -> str:
    """The page of ``ckpt_transport.spi``."""
    parts, rows = [prose(spi.__doc__ or "")], []
    for name in spi.__all__:
        value = getattr(spi, name)
        home = getattr(value, "__module__", None) or ""
        if home.startswith(IN_FULL) and not home.startswith(NOT_IN_FULL):
            parts += described(name, value, spi)
        else:
            rows.append(
                (f"`{name}`", home.split(".")[1] if home.startswith("ckpt_transport.") else "", _first_sentence(name))
            )
    rows.sort(key=lambda row: row[1])
    parts += ["## What else there is", table(("name", "room", "what it is or does"), rows)]
    return page("Interface for authors", "## Module `ckpt_transport.spi`", *parts)


def _first_sentence(name: str) -> str:
    value = getattr(spi, name)
    own = inspect.ismodule(value) or getattr(value, "__name__", "") == name
    doc = (inspect.getdoc(value) if own else note(name, spi)) or f"`{value!r}`"
    return re.split(r"(?<=\.) ", flat(doc.split("\n\n")[0]))[0]
