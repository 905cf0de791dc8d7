"""Headers of safetensors files: what is read, and what is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport import dtypes
from ckpt_transport.checkpoint.header import TensorEntry, parse_header, read_header
from ckpt_transport.errors import CheckpointError
from tests.unit.safetensors_files import content, entry, every_dtype, oracle, oracle_of, write

NOWHERE = Path("some.safetensors")
ONE = {"a": entry("U8", [3], 0, 3)}


def parse(file: bytes) -> tuple[TensorEntry, ...]:
    """The tensors of a whole file that is in memory."""
    nbytes = int.from_bytes(file[:8], "little")
    return parse_header(file[8 : 8 + nbytes], len(file), NOWHERE)


def read(path: Path) -> tuple[TensorEntry, ...]:
    with path.open("rb") as file:
        return read_header(path, file.fileno())


def in_oracle_terms(file: bytes, found: tuple[TensorEntry, ...]) -> dict[str, tuple[str, list[int], bytes]]:
    return {
        tensor.spec.name: (tensor.spec.dtype, list(tensor.spec.shape), file[tensor.offset : tensor.end])
        for tensor in found
    }


names = st.text(max_size=12).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 5), max_size=4)
saved_by_torch = sorted(set(dtypes.TORCH) - {"F4", "F8_E8M0"})


@st.composite
def tensor_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Named tensors of all types that torch can save."""
    return {
        name: torch.zeros(draw(shapes), dtype=dtypes.TORCH[draw(st.sampled_from(saved_by_torch))])
        for name in draw(st.sets(names, max_size=6))
    }


@given(tensor_dicts())
def test_given_what_the_library_saves_then_it_is_found_where_it_put_it(tensors: dict[str, torch.Tensor]) -> None:
    file = safetensors.torch.save(tensors)
    assert in_oracle_terms(file, parse(file)) == oracle_of(file)


def test_given_a_file_with_every_dtype_then_all_are_found(tmp_path: Path) -> None:
    header, data = every_dtype()
    path = write(tmp_path / "all.safetensors", header, data)
    found = read(path)
    assert {tensor.spec.dtype for tensor in found} == set(dtypes.BITS)
    assert in_oracle_terms(path.read_bytes(), found) == oracle(path)


def test_given_a_header_in_any_order_then_tensors_come_in_the_order_of_their_bytes() -> None:
    header = {"late": entry("U8", [2], 1, 3), "empty": entry("F32", [0, 7], 1, 1), "early": entry("U8", [1], 0, 1)}
    assert [tensor.spec.name for tensor in parse(content(header, b"abc"))] == ["early", "empty", "late"]


def test_given_metadata_unknown_keys_and_trailing_spaces_then_they_are_allowed() -> None:
    header = {"__metadata__": {"format": "pt"}, "a": {**entry("U8", [3], 0, 3), "note": 1}}
    assert len(parse(content(json.dumps(header).encode() + b"   ", b"abc"))) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
numbers = st.integers(-2, 20) | st.integers() | json_values
near_entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*dtypes.BITS, "Q4", ""]) | json_values,
        "shape": st.lists(numbers, max_size=3) | json_values,
        "data_offsets": st.lists(numbers, max_size=3) | json_values,
    },
)


def refused_or_shared_with_the_library(file: bytes) -> None:
    """Nothing but CheckpointError is raised, and what is accepted the library accepts and reads alike."""
    try:
        found = parse(file)
    except CheckpointError:
        return
    assert in_oracle_terms(file, found) == oracle_of(file)


@given(st.dictionaries(st.text(max_size=3), near_entries | json_values, max_size=3), st.binary(max_size=20))
def test_given_headers_that_are_made_up_then_they_are_refused_with_a_checkpoint_error(
    header: dict[str, object], data: bytes
) -> None:
    refused_or_shared_with_the_library(content(header, data))


@given(tensor_dicts(), st.data())
def test_given_headers_that_are_damaged_then_they_are_refused_with_a_checkpoint_error(
    tensors: dict[str, torch.Tensor], data: st.DataObject
) -> None:
    file = bytearray(safetensors.torch.save(tensors))
    header_nbytes = int.from_bytes(file[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        at = 8 + data.draw(st.integers(0, header_nbytes - 1))
        file[at] = data.draw(st.sampled_from(b'0123456789{}[]",:-.eFU\x00\x80\xff ') | st.integers(0, 255))
    refused_or_shared_with_the_library(bytes(file))


@given(st.binary(max_size=64))
def test_given_files_of_noise_then_they_are_refused_with_a_checkpoint_error(noise: bytes) -> None:
    fd = os.memfd_create("noise")
    try:
        os.write(fd, noise)
        with pytest.raises(CheckpointError, match=r"some\.safetensors"):
            read_header(NOWHERE, fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        pytest.param(b"", "has 0 bytes", id="empty file"),
        pytest.param(b"1234567", "has 7 bytes", id="shorter than the length field"),
        pytest.param(b"PK\x03\x04" + bytes(range(200)), "not a safetensors file", id="a zip file"),
        pytest.param((100_000_001).to_bytes(8, "little"), "100,000,001 bytes long", id="header above the limit"),
        pytest.param(
            (50).to_bytes(8, "little") + b"{}", "50 bytes long, and 2 follow", id="header longer than the file"
        ),
        pytest.param(content(b"{nonsense"), "not valid JSON", id="not JSON"),
        pytest.param(content(b'{"\xff": 1}'), "not valid JSON", id="not UTF-8"),
        pytest.param(content(b"[" * 100_000), "not valid JSON", id="nested absurdly deep"),
        pytest.param(content([1]), "not a JSON object", id="header is a list"),
        pytest.param(content(b'{"a": {"x": NaN}}'), "NaN", id="NaN"),
        pytest.param(
            content(b'{"a": %(e)s, "a": %(e)s}' % {b"e": json.dumps(ONE["a"]).encode()}, b"abc"),
            "name 'a' appears twice",
            id="a name twice",
        ),
        pytest.param(content({"__metadata__": {"a": 1}}), "__metadata__", id="metadata of numbers"),
        pytest.param(content({"a": 1}), "tensor 'a' is not described", id="entry is a number"),
        pytest.param(content({"a": {"dtype": "U8"}}), "tensor 'a' lacks data_offsets, shape", id="entry lacks keys"),
        pytest.param(
            content({"a": {**ONE["a"], "dtype": 8}}, b"abc"), "dtype 8 is not a string", id="dtype is a number"
        ),
        pytest.param(content({"a": entry("Q3", [3], 0, 3)}, b"abc"), "dtype 'Q3' is unknown", id="unknown dtype"),
        pytest.param(content({"a": entry("F4", [3], 0, 1)}, b"a"), "does not fill whole bytes", id="half a byte"),
        pytest.param(content({"a": entry("U8", [-3], 0, 3)}, b"abc"), "shape [-3]", id="negative size"),
        pytest.param(content({"a": {**ONE["a"], "shape": [3.0]}}, b"abc"), "shape [3.0]", id="size is no integer"),
        pytest.param(
            content({"a": {**ONE["a"], "shape": [True] * 3}}, b"abc"), "shape [True", id="size is a truth value"
        ),
        pytest.param(content({"a": entry("U8", [1] * 65, 0, 1)}, b"a"), "at most 64", id="too many dimensions"),
        pytest.param(
            content({"a": entry("U8", [2**62] * 8 + [0], 0, 0)}), "larger than can be counted", id="no bytes, huge"
        ),
        pytest.param(
            content({"a": entry("F32", [2**61, 0], 0, 0)}), "larger than can be counted", id="no bytes, just too large"
        ),
        pytest.param(content({"a": entry("U8", [2**62] * 8, 0, 3)}, b"abc"), "larger than can be counted", id="huge"),
        pytest.param(content({"a": {**ONE["a"], "data_offsets": [0]}}, b"abc"), "not two integers", id="one offset"),
        pytest.param(content({"a": entry("U8", [3], -3, 0)}, b"abc"), "negative", id="negative offset"),
        pytest.param(content({"a": entry("U8", [3], 3, 0)}, b"abc"), "run backwards", id="end before begin"),
        pytest.param(
            content({"a": entry("F32", [3], 0, 3)}, b"abc"), "F32 [3] takes 12", id="size does not fit the shape"
        ),
        pytest.param(
            content(ONE, b"a"), "tensor 'a' ends beyond the end of the file, which is cut short by 2", id="cut"
        ),
        pytest.param(
            content({"a": entry("U8", [3], 0, 3), "b": entry("U8", [3], 2, 5)}, b"abcde"),
            "'a' and 'b' overlap by 1 bytes",
            id="overlap",
        ),
        pytest.param(content({"a": entry("U8", [2], 1, 3)}, b"abc"), "belong to no tensor", id="hole at the start"),
        pytest.param(
            content({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"abc"),
            "belong to no tensor",
            id="hole in the middle",
        ),
        pytest.param(content(ONE, b"abcd"), "belong to no tensor", id="hole at the end"),
        pytest.param(
            content(b'{"\\ud800": %s}' % json.dumps(ONE["a"]).encode(), b"abc"), "not Unicode", id="half a pair"
        ),
    ],
)
def test_given_a_bad_file_then_the_error_names_the_file_and_what_is_wrong(
    tmp_path: Path, file: bytes, message: str
) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(file)
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        read(path)
    assert str(path) in str(caught.value)
