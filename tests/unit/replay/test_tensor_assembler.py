"""Given tensors that come in pieces, cut anywhere and in any order, then a loader gets each of them whole, once."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport import LoadedPiece
from ckpt_transport.planning import TensorSpec
from ckpt_transport.replay import TensorAssembler

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=4)


@given(SIZES, st.data())
def test_given_tensors_in_pieces_then_each_comes_out_whole_and_once(sizes: list[int], data: st.DataObject) -> None:
    tensors = {f"t{number}": torch.randint(256, (size,), dtype=torch.uint8) for number, size in enumerate(sizes)}
    pieces = []
    for name, tensor in tensors.items():
        cuts = data.draw(st.sets(st.integers(1, max(tensor.numel() - 1, 1)), max_size=3))
        edges = [0, *sorted(cut for cut in cuts if cut < tensor.numel()), tensor.numel()]
        spec = TensorSpec(name, "U8", (tensor.numel(),))
        pieces += [LoadedPiece(spec, low, tensor[low:high].clone()) for low, high in pairwise(edges)]
    gathering, found = TensorAssembler(), {}
    for piece in data.draw(st.permutations(pieces)):
        for whole in gathering.whole([piece]):
            assert whole.spec.name not in found
            assert whole.stable or piece.whole
            found[whole.spec.name] = whole.tensor().clone()
        piece.raw.fill_(0)  # slots are used again
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_given_an_update_that_fails_then_what_was_begun_is_forgotten() -> None:
    spec = TensorSpec("t", "U8", (4,))
    gathering = TensorAssembler()
    assert list(gathering.whole([LoadedPiece(spec, 0, torch.ones(2, dtype=torch.uint8))])) == []
    gathering.clear()
    rest = LoadedPiece(spec, 2, torch.ones(2, dtype=torch.uint8))
    assert list(gathering.whole([rest])) == []
