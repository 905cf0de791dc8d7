"""What is said about a setting beside its field: its meaning, its kind, and which values it may have."""

from __future__ import annotations

from typing import Any

from msgspec import Meta

WEEK = 7 * 24 * 3600.0


def setting(meaning: str, kind: str, expects: str, **bounds: Any) -> Meta:
    """What a setting means, what kind of value it has, and which it may have."""
    return Meta(description=meaning, extra={"type": kind, "expects": expects}, **bounds)


def size(meaning: str) -> Meta:
    expects = "a size above zero: a number of bytes, or text as '64MiB', '1GiB', '512KiB', '4MB'"
    return setting(meaning, "size", expects, ge=1)


def seconds(meaning: str) -> Meta:
    return setting(meaning, "seconds", "a number of seconds above zero and at most a week", gt=0, le=WEEK)


def text(meaning: str, expects: str = "text", **bounds: Any) -> Meta:
    return setting(meaning, "text", expects, **bounds)


def one_of(meaning: str, *values: str) -> Meta:
    return setting(meaning, " | ".join(values), " or ".join(f"'{value}'" for value in values))
