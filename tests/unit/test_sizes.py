"""Sizes and durations are read and written as people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.errors import ConfigError
from ckpt_transport.sizes import duration, parse_size, size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("7B", 7),
        ("512KiB", 512 << 10),
        ("64MiB", 64 << 20),
        (" 64 mib ", 64 << 20),
        ("1.5GiB", 1536 << 20),
        ("4MB", 4_000_000),
        ("1TB", 10**12),
    ],
)
def test_given_sizes_then_they_are_read_as_people_write_them(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e6", "0x10", "64M", "64MiBs", "1.5B", "1 2", "٣", "9" * 5000])
def test_given_what_is_not_a_size_then_it_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


@given(count=st.integers(1, 1023), unit=st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB"]))
def test_given_a_whole_number_of_units_then_it_survives_writing_and_reading(count: int, unit: str) -> None:
    assert size(parse_size(f"{count}{unit}")) == f"{count} {unit}"


@given(st.integers(0, 2**50))
def test_given_any_size_then_it_is_written_to_four_digits(nbytes: int) -> None:
    number, unit = size(nbytes).split()
    assert math.isclose(float(number) * parse_size(f"1{unit}"), nbytes, rel_tol=0.0005)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0 µs"),
        (0.00064, "640 µs"),
        (0.0123, "12.3 ms"),
        (0.9996, "1 s"),
        (0.00099996, "1 ms"),
        (99.96, "1 min 40 s"),
        (4.56, "4.56 s"),
        (125.0, "2 min 5 s"),
    ],
)
def test_given_a_time_span_then_it_is_written_as_people_do(value: float, words: str) -> None:
    assert duration(value) == words
