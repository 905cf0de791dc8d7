"""Sizes, counts and durations are read and written as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

from ckpt_transport.errors import ConfigError

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)},
}


def parse_size(text: str) -> int:
    """Bytes from text such as ``64MiB``, ``1.5GiB``, ``4MB`` (a million each) or ``4096``.

    Raises:
        ConfigError: it is not a size, or not a whole number of bytes.
    """
    match = re.fullmatch(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ConfigError(f"'{text}' is not a size; write a number of bytes, or 512KiB, 64MiB, 1GiB, 4MB")
    size = Fraction(match[1]) * factor
    if size.denominator != 1:
        raise ConfigError(f"'{text}' is not a whole number of bytes")
    return int(size)


def size(nbytes: float) -> str:
    """Write a number of bytes in the binary unit that a person would choose."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} TiB"


def count(number: int, noun: str) -> str:
    """Write a number and its noun: ``1 sink``, ``2 sinks``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """Write seconds as people do: ``640 µs``, ``12.3 ms``, ``4.56 s``, ``2 min 5 s``."""
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 99.95:
        return f"{seconds:.3g} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
