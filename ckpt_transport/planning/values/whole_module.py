"""A module of which single elements cannot be followed takes the tensors that it is loaded from whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

MOST_NAMED = 3


class WholeModule(msgspec.Struct, frozen=True, array_like=True):
    """A module of an engine that takes all of its tensors in each update, whatever of them has changed.

    Attributes:
        name: of the module in the engine.
        reason: why, in words.
        tensors: names of the tensors of a version that it is loaded from.
    """

    name: str
    reason: str
    tensors: tuple[str, ...]


def modules_in_words(reasons: Mapping[str, str]) -> str:
    """Which modules take their tensors whole, and why; of many the first ones. Empty for none.

    Args:
        reasons: by the name of each module.
    """
    if not reasons:
        return ""
    named = ", ".join(f"{name} ({reason})" for name, reason in list(reasons.items())[:MOST_NAMED])
    more = f" and {len(reasons) - MOST_NAMED} more" if len(reasons) > MOST_NAMED else ""
    count = "1 module takes its" if len(reasons) == 1 else f"{len(reasons)} modules take their"
    return f"{count} tensors whole: {named}{more}"


def reasons_of(modules: Iterable[WholeModule]) -> dict[str, str]:
    """Why modules take their tensors whole, by name."""
    return {module.name: module.reason for module in modules}
