"""Elements get another type while they are copied, chunk by chunk."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.checkpoint import Mapping, Store, rules
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import MemoryKind


@pytest.mark.parametrize("how", ["register", "lend"])
def test_given_fp32_that_becomes_bf16_then_every_element_is_rounded_as_torch_does(how: str) -> None:
    """Given a tensor of several batches of chunks, and one of a few elements."""
    tensors = {"w": torch.randn(9 << 20), "b": torch.randn(3), "t": torch.randn(64, 32)}
    mapping = Mapping.of(rules.Cast("BF16"))
    with Store(pool=MemoryKind.PRIVATE, threads=2) as store:
        stored = getattr(store, how)("v1", tensors=tensors, mapping=mapping)
        raw = torch.empty(stored.extents[0].nbytes, dtype=torch.uint8)
        if how == "lend":
            stored.extents[0].fill(raw, 0)
        else:
            raw = stored.buffers[0].tensor
        for placed in stored.manifest.tensors:
            found = raw[placed.offset : placed.offset + placed.nbytes].view(torch.bfloat16)
            assert torch.equal(found, tensors[placed.spec.name].bfloat16().view(-1))


def test_given_one_element_of_many_that_overflows_then_tensor_and_range_are_named_and_nothing_is_registered() -> None:
    large = torch.zeros(9 << 20)
    large[8 << 20] = 3.4e38
    with Store(pool=MemoryKind.PRIVATE, threads=2) as store:
        with pytest.raises(CheckpointError, match=r"'w' has elements from 0 to 3\.4e\+38, which overflow in BF16"):
            store.register("v1", tensors={"w": large}, mapping=Mapping.of(rules.Cast("BF16")))
        store.register("v1", tensors={"w": torch.zeros(3)})
