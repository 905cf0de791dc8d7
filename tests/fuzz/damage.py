"""Inputs that are almost right: what was written well, and is damaged in a few places."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, 1, -1, 2, 255, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
TEXTS = ("", "\0", "x" * 300, "../..", "/etc/passwd", "é", "0", "ipc:///tmp/x", "tcp://127.0.0.1:1", "[" * 50)
odd = st.one_of(
    st.sampled_from([None, True, False, 0.0, -1.5, 1e308, [], {}, [[]], {"": None}]),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(st.sampled_from(NUMBERS), max_size=4),
)
"""What may stand anywhere in JSON, TOML or msgpack."""


@st.composite
def damaged(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """One of these, with a few bytes changed, taken out, put in or said twice; or it is cut; or it is anything."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(("flip", "cut", "out", "in", "twice", "else"))):
            case "flip" if data:
                data[at] = draw(st.integers(0, 255))
            case "cut":
                del data[at:]
            case "out":
                del data[at : at + draw(st.integers(1, 9))]
            case "in":
                data[at:at] = draw(st.one_of(st.binary(max_size=9), st.sampled_from(BURSTS)))
            case "twice":
                data[at:at] = data[at : at + draw(st.integers(1, 99))]
            case _:
                data = bytearray(draw(st.binary(max_size=64)))
    return bytes(data)


LONGEST = b"\xff\xff\xff\xff"
BURSTS = (b"[" * 5000, b"{" * 5000, b"\x91" * 5000, b"\xdd" + LONGEST, b"\xdf" + LONGEST, b"\xc6" + LONGEST)
"""Nested deeper than anybody reads, and lengths of msgpack that nobody has."""


@st.composite
def changed(draw: st.DrawFn, samples: Sequence[Any]) -> Any:
    """One of these trees of dictionaries and lists, with a few values in it replaced, taken out or said twice."""
    tree = [copy.deepcopy(draw(st.sampled_from(samples)))]
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(list(_places(tree))))
        match draw(st.sampled_from(("replace", "replace", "out", "twice"))):
            case "out" if holder is not tree:
                del holder[key]
            case "twice" if isinstance(holder, list) and holder is not tree:
                holder.insert(key, copy.deepcopy(holder[key]))
            case _:
                holder[key] = copy.deepcopy(draw(odd))
    return tree[0]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in a tree, by what holds it and under which key or number."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])
