"""How strided copies are cut into tiles: as wide words, and as equal work, as can be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ckpt_transport.memory.strided_bytes import TILE_WORDS, ElementCopy, StridedBytes, tiles


def cut(*copies: ElementCopy, source: int = 0, target: int = 0) -> npt.NDArray[np.int64]:
    return tiles(StridedBytes.of(copies), np.array([source]), np.array([target]))


def dense(nbytes: int, read: int = 0, write: int = 0) -> ElementCopy:
    return ElementCopy(0, 0, read, write, 1, (nbytes,), (1,), (1,))


def test_given_aligned_bytes_then_words_of_eight_and_the_rest_apart() -> None:
    found = cut(dense(8 * 100 + 6))
    assert sorted((rows * columns, word) for rows, columns, word in found[:, [4, 5, 10]]) == [(3, 2), (100, 8)]


def test_given_both_sides_at_the_same_place_in_a_word_then_words_are_wide_all_the_same() -> None:
    found = cut(dense(800, read=3, write=11))
    assert found[:, 10].max() == 8
    assert (found[:, 4] * found[:, 5] * found[:, 10]).sum() == 800
    assert cut(dense(800, read=3), target=3)[:, 10].max() == 8
    assert cut(dense(800, read=3), target=1)[:, 10].max() == 2


def test_given_rows_of_a_wide_tensor_then_a_tile_has_many_of_them() -> None:
    found = cut(ElementCopy(0, 0, 0, 0, 2, (2048, 384), (1536, 2), (768, 2)))
    assert (found[:, 5] == 96).all()
    assert found[:, 4].sum() == 2048
    assert len(found) == -(-2048 // (TILE_WORDS // 96))


def test_given_a_transposed_matrix_then_elements_are_words() -> None:
    found = cut(ElementCopy(0, 0, 0, 0, 2, (300, 500), (2, 600), (1000, 2)))
    assert set(found[:, 10]) == {2}
    assert (found[:, 4] * found[:, 5]).sum() == 300 * 500
    assert (found[:, 9] == 1).all(), "neighbours in a row are not neighbours in the target"


def test_given_more_than_four_gigabytes_then_offsets_go_on() -> None:
    nbytes = (5 << 30) + 24
    found = cut(dense(nbytes))
    assert (found[:, 4] * found[:, 5]).max() <= TILE_WORDS
    assert found[-1, 2] == found[-1, 3] > 5 << 30 - 1
    assert (found[:, 4] * found[:, 5] * found[:, 10]).sum() == nbytes
