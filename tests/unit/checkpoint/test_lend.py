"""Given tensors that are lent, when buckets are filled from them, then these hold what a copied pool would."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.checkpoint import Store
from ckpt_transport.errors import CheckpointError, StoreError
from ckpt_transport.memory import MemoryKind

POISON = 0xA5


def some_tensors(lengths: list[int]) -> dict[str, torch.Tensor]:
    return {f"t{number}": torch.randint(0, 256, (length,), dtype=torch.uint8) for number, length in enumerate(lengths)}


@given(st.lists(st.integers(0, 1500), min_size=1, max_size=8), st.data())
def test_given_lent_tensors_then_any_range_of_the_extent_is_as_in_a_pool(
    lengths: list[int], data: st.DataObject
) -> None:
    tensors = some_tensors(lengths)
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        copied, lent = store.register("copied", tensors=tensors), store.lend("lent", tensors)
        assert lent.manifest.tensors == copied.manifest.tensors
        (pool,), (scattered,) = copied.buffers, lent.extents
        kind = MemoryKind.READABLE if any(lengths) else MemoryKind.SCATTERED
        assert (lent.buffers, scattered.kind, scattered.nbytes) == ((), kind, pool.nbytes)
        first = data.draw(st.integers(0, pool.nbytes))
        last = data.draw(st.integers(first, pool.nbytes))
        slots = [torch.full((last - first,), POISON, dtype=torch.uint8) for _ in range(2)]
        pool.fill(slots[0], first)
        scattered.fill(slots[1], first)
        for place in copied.manifest.tensors:
            start, end = max(place.offset - first, 0), max(min(place.offset + place.nbytes, last) - first, 0)
            assert torch.equal(slots[0][start:end], slots[1][start:end])


def test_given_lent_tensors_then_nothing_is_copied_until_a_bucket_is_filled() -> None:
    tensor = torch.zeros(1000)
    with Store(threads=1) as store:
        (scattered,) = store.lend("v1", {"a": tensor}).extents
        tensor.fill_(7)
        slot = torch.empty(4000, dtype=torch.uint8)
        scattered.fill(slot, 0)
        assert slot.view(torch.float32).eq(7).all()


def test_given_lent_tensors_then_shapes_and_dtypes_are_theirs() -> None:
    tensors = {"a": torch.zeros((), dtype=torch.float64), "b": torch.zeros(2, 3, dtype=torch.float8_e4m3fn)}
    with Store(threads=1) as store:
        placed = store.lend("v1", tensors).manifest.tensors
        assert [(tensor.spec.dtype, tensor.spec.shape) for tensor in placed] == [("F64", ()), ("F8_E4M3", (2, 3))]


def test_given_what_cannot_be_lent_then_it_is_named_and_the_name_stays_free() -> None:
    with Store(threads=1) as store:
        with pytest.raises(CheckpointError, match=r"'b' is not contiguous; lend tensor\.contiguous\(\)"):
            store.lend("v1", {"a": torch.zeros(4), "b": torch.zeros(4, 4).t()})
        store.lend("v1", {"a": torch.zeros(4)})
        with pytest.raises(StoreError, match="'v1' is registered already"):
            store.lend("v1", {"a": torch.zeros(4)})
        store.unregister("v1")
        store.lend("v1", {"a": torch.zeros(4)})
    with pytest.raises(StoreError, match="closed"):
        store.lend("v2", {"a": torch.zeros(4)})


def test_given_lent_tensors_then_no_shared_memory_is_taken() -> None:
    before = set(Path("/dev/shm").iterdir())
    with Store(threads=1) as store:
        store.lend("v1", {"a": torch.zeros(1 << 20)})
        taken = {path.name for path in Path("/dev/shm").iterdir() if path not in before}
        assert not any(f"-{os.getpid()}-" in name for name in taken)


def test_given_a_tensor_of_one_element_that_was_expanded_then_it_is_lent_as_it_is() -> None:
    """Torch takes it for contiguous, whatever its strides are."""
    expanded = torch.tensor(2.5, dtype=torch.float32).expand(1, 1)
    assert expanded.stride() == (0, 0)
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        (scattered,) = store.lend("v1", {"a": expanded, "b": torch.ones(2)}).extents
        slot = torch.zeros(scattered.nbytes, dtype=torch.uint8)
        scattered.fill(slot, 0)
        assert slot[:4].view(torch.float32).tolist() == [2.5]
        scattered.check()
