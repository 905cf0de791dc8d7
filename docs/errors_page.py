"""The page about errors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

from ckpt_transport import errors
from docs.described import is_error
from docs.rendering import flat, items, page, prose, table


def error_tree() -> str:
    rows = []
    for name, kind in vars(errors).items():
        if is_error(kind):
            parents = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
            meaning, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")
            rows.append(
                (
                    f"`{name}`",
                    parents,
                    " ".join([flat(meaning), *(items(attributes.splitlines()) if attributes else ())]),
                )
            )
    return page(
        "Errors",
        prose(errors.__doc__ or ""),
        "\n".join(["```text", *_tree([errors.CkptTransportError]), "```"]),
        table(("error", "is a", "meaning"), rows),
        "What they mean to whoever runs an update: [handle failures](../how-to/handle-failures.md).",
    )


def _tree(kinds: Sequence[type[BaseException]], indent: str = "") -> Iterator[str]:
    """The names of classes, and below each those that derive from it."""
    for kind in kinds:
        below = [each for each in kind.__subclasses__() if is_error(each)]
        yield f"{indent}{kind.__name__}"
        yield from _tree(below, indent + "    ")
