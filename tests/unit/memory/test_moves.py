"""Long arrays are copied in short moves, and every byte arrives whatever the array looks like."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ckpt_transport.memory.moves import MOVE_BYTES, move

PAIR = 2 * MOVE_BYTES
SIZES = [0, 1, MOVE_BYTES, PAIR, PAIR + 1, 2 * PAIR - 1, 3 * PAIR + MOVE_BYTES + 3]


@pytest.mark.parametrize("size", SIZES)
def test_given_arrays_of_any_length_then_each_byte_is_copied_and_none_beside_them(size: int) -> None:
    source = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    memory = np.full(size + 6, 7, np.uint8)
    move(memory[3 : 3 + size], source)
    assert np.array_equal(memory[3 : 3 + size], source)
    assert set(memory[:3]) | set(memory[3 + size :]) == {7}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_given_arrays_of_several_dimensions_then_their_elements_are_copied(dtype: type) -> None:
    source: npt.NDArray[Any] = np.random.default_rng(1).integers(0, 100, (3, 700, 1024)).astype(dtype)
    target = np.zeros_like(source)
    move(target, source)
    assert np.array_equal(target, source)


def test_given_columns_of_a_matrix_then_only_these_are_written() -> None:
    source: npt.NDArray[np.int64] = np.arange(2 << 20, dtype=np.int64).reshape(2048, -1)
    target = np.zeros_like(source)
    move(target[:, ::2], source[:, ::2])
    assert np.array_equal(target[:, ::2], source[:, ::2])
    assert not target[:, 1::2].any()
