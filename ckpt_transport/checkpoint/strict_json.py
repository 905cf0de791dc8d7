"""This module parses JSON objects and takes none of the liberties that the standard parser takes."""

from __future__ import annotations

import json
from typing import NoReturn

from ckpt_transport.errors import CheckpointError


def parse_object(text: bytes, origin: str) -> dict[str, object]:
    """Parse UTF-8 JSON whose outermost value is an object.

    Args:
        text: the JSON.
        origin: what the text is, for messages.

    Raises:
        CheckpointError: it is not UTF-8, not JSON, nested absurdly deep, holds NaN or infinity, repeats a name within
            one object, or is not an object.
    """
    try:
        value = json.loads(text.decode(), object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{origin} is not valid JSON: {error}; download or save the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{origin} is not a JSON object; download or save the file again")
    return value


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    seen: dict[str, object] = {}
    for name, value in pairs:
        if name in seen:
            raise ValueError(f"name {name!r} appears twice in one object")
        seen[name] = value
    return seen


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
