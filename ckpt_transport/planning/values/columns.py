"""Columns are how a plan travels: values that are alike are put side by side, where they take next to no bytes.

A trillion parameters are 140,000 tensors, whose names differ in two numbers and whose offsets grow by the size of the
one before. So of a list of records each field becomes a column, numbers are written as differences, of names the text
is written once for all that differ in their numbers only, and all of it is compressed.
"""

from __future__ import annotations

import enum
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from operator import sub
from typing import Any

import msgspec

FEW = 8
"""A list of fewer values is written one value after the other."""
MOST_BYTES = 1 << 31
"""More does not come out of an encoded plan, whatever it says."""
MOST_CHARACTERS = 1 << 28
"""Of all texts of one list: one template may be long, and be named by many."""
_NUMBER = re.compile(r"(?<!\d)(0|[1-9]\d{0,17})(?!\d)", re.ASCII)


class _Form(enum.IntEnum):
    """How a value is written."""

    ATOM = 0
    ITEMS = 1
    NUMBERS = 2
    TEXTS = 3
    ROWS = 4
    RAGGED = 5
    RECORD = 6
    RECORDS = 7


def encode(value: Any) -> bytes:
    """Write what msgpack can say; ``value`` is made of dictionaries, lists, strings, numbers, bytes and None."""
    return zlib.compress(msgspec.msgpack.encode(_packed(value)))


def decode(data: bytes) -> Any:
    """Read what :func:`encode` has written.

    Raises:
        msgspec.DecodeError: the bytes are something else.
    """
    try:
        inflate = zlib.decompressobj()
        plain = inflate.decompress(data, MOST_BYTES)
        if not inflate.eof:
            raise msgspec.DecodeError("the bytes end early, or hold too much")
        return _unpacked(msgspec.msgpack.decode(plain))
    except (zlib.error, TypeError, ValueError, LookupError, RecursionError) as error:
        raise msgspec.DecodeError(f"these bytes are not columns: {error}") from error


def _packed(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [_Form.RECORD, list(value), [_packed(each) for each in value.values()]]
    return _packed_list(value) if isinstance(value, list) else [_Form.ATOM, value]


def _packed_list(items: Sequence[Any]) -> list[Any]:
    kinds = set(map(type, items))
    if len(items) < FEW or len(kinds) > 1:
        return [_Form.ITEMS, [_packed(each) for each in items]]
    kind = kinds.pop()
    if kind is int:
        return [_Form.NUMBERS, [items[0], *map(sub, items[1:], items)]]
    if kind is str:
        return [_Form.TEXTS, *_templates(items)]
    if kind is list:
        lengths = list(map(len, items))
        if lengths[0] and len(set(lengths)) == 1:
            return [_Form.ROWS, len(items), [_packed_list(column) for column in zip(*items, strict=True)]]
        return [_Form.RAGGED, _packed_list(lengths), _packed_list(list(chain.from_iterable(items)))]
    if kind is dict and len({tuple(each) for each in items}) == 1:
        keys = list(items[0])
        return [_Form.RECORDS, len(items), keys, [_packed_list([each[key] for each in items]) for key in keys]]
    return [_Form.ITEMS, [_packed(each) for each in items]]


def _unpacked(packed: Any) -> Any:
    form, *rest = packed
    match form, rest:
        case _Form.ATOM, [value]:
            return value
        case _Form.ITEMS, [items]:
            return [_unpacked(each) for each in items]
        case _Form.NUMBERS, [differences]:
            return list(accumulate(_whole(differences)))
        case _Form.TEXTS, [templates, which, numbers]:
            return list(_texts(templates, _unpacked(which), [list(map(_unpacked, columns)) for columns in numbers]))
        case _Form.ROWS, [_, columns]:
            return list(map(list, zip(*map(_unpacked, columns), strict=True)))
        case _Form.RAGGED, [lengths, items]:
            every, sizes = _unpacked(items), _whole(_unpacked(lengths))
            ends = [0, *accumulate(sizes)]
            if ends[-1] != len(every) or min(sizes, default=0) < 0:
                raise ValueError("lists of other lengths than are said")
            return [every[start:end] for start, end in pairwise(ends)]
        case _Form.RECORD, [keys, values]:
            return dict(zip(keys, map(_unpacked, values), strict=True))
        case _Form.RECORDS, [_, keys, columns]:
            return [dict(zip(keys, row, strict=True)) for row in zip(*map(_unpacked, columns), strict=True)]
    raise ValueError(f"form {form} with {len(rest)} parts")


def _whole(numbers: list[int]) -> list[int]:
    """These, which are whole numbers."""
    if not set(map(type, numbers)) <= {int}:
        raise ValueError("numbers that are none")
    return numbers


def _templates(texts: Sequence[str]) -> tuple[list[list[str]], list[Any], list[list[Any]]]:
    """What texts have in common: templates, which of them each text follows, and columns of numbers for each."""
    known: dict[tuple[str, ...], int] = {}
    which: list[int] = []
    numbers: list[list[list[int]]] = []
    for text in texts:
        parts = _NUMBER.split(text)
        template = tuple(parts[::2])
        place = known.setdefault(template, len(known))
        if place == len(numbers):
            numbers.append([[] for _ in template[1:]])
        for column, number in zip(numbers[place], parts[1::2], strict=True):
            column.append(int(number))
        which.append(place)
    packed = [[_packed_list(column) for column in columns] for columns in numbers]
    return [list(template) for template in known], _packed_list(which), packed


def _texts(templates: list[list[str]], which: list[int], numbers: list[list[list[int]]]) -> Iterator[str]:
    rows = [zip(*map(_whole, columns), strict=True) for columns in numbers]
    room = MOST_CHARACTERS
    for place in which:
        template = templates[place]
        if len(template) == 1:
            yield template[0]
            continue
        values = next(rows[place], ())
        text = template[0] + "".join(f"{number}{text}" for number, text in zip(values, template[1:], strict=True))
        room -= len(text)
        if room < 0:
            raise ValueError(f"texts of more than {MOST_CHARACTERS} characters")
        yield text
