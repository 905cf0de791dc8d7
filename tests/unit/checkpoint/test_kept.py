"""A store keeps the version that was published last, for the next one to be compared with, and carries what differs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ckpt_transport.checkpoint import Store, StoredVersion
from ckpt_transport.deltas import CopiedBytes, find_differences, ranges_of
from ckpt_transport.errors import StoreError
from tests.carried import elements_of
from tests.unit.safetensors_files import segments


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((1000, 7), float(value)), "b": torch.full((33,), value, dtype=torch.bfloat16)}


def carried(store: Store, base: StoredVersion, new: StoredVersion) -> StoredVersion:
    ranges = ranges_of(new.manifest.tensors, 1 << 20)
    found = find_differences(ranges, base.buffers, [CopiedBytes(each) for each in new.buffers], 1 << 30, lambda: None)
    assert found is not None
    return store.carriers.carry(new, base.manifest.version, found)


def test_given_versions_that_are_kept_in_turn_then_two_pools_serve_all_of_them() -> None:
    with Store() as store:
        places = []
        for step in range(5):
            stored = store.register("latest", tensors=weights(step))
            places.append(stored.buffers[0].place)
            store.keep("latest")
            assert store.kept is stored
        assert len(set(places)) == 2
        assert places[0] == places[2] == places[4]


def test_given_a_version_that_is_kept_then_its_name_is_free_and_its_bytes_stay() -> None:
    with Store() as store:
        kept = store.register("v", tensors=weights(1))
        store.keep("v")
        with pytest.raises(StoreError):
            store.get("v")
        store.register("v", tensors=weights(2))
        assert store.with_content(kept.content) is kept
        assert torch.equal(kept.tensors()["a"], weights(1)["a"])
        store.let_go_of_kept()
        assert store.kept is None
        assert store.with_content(kept.content) is None


def test_given_what_differs_then_it_is_carried_beside_the_pools_of_both_versions_and_given_back() -> None:
    with Store() as store:
        base = store.register("1", tensors=weights(1))
        store.keep("1")
        tensors = weights(1)
        tensors["a"][3, 3] = 5
        for step in (2, 3):
            new = store.register(f"{step}", tensors=tensors)
            delta = carried(store, base, new)
            assert delta.content is new.content
            (carrier,) = delta.manifest.deltas[0].carriers
            placed = delta.manifest.tensors[0]
            raw = delta.buffers[0].tensor[placed.offset : placed.offset + placed.nbytes]
            places, values = elements_of(raw, carrier.form, carrier.unit, carrier.nbytes, carrier.count)
            assert places.tolist() == [3 * 7 + 3]
            assert values.view(np.float32).tolist() == [5.0]
            store.carriers.let_go(delta)
            store.unregister(f"{step}")
            assert len(segments()) == 3
        store.carriers.free()
        assert len(segments()) == 2
    assert not segments()


def test_given_a_store_that_is_closed_while_carriers_are_held_then_their_memory_is_given_back_later() -> None:
    store = Store()
    base, new = store.register("1", tensors=weights(1)), store.register("2", tensors=weights(2))
    delta = carried(store, base, new)
    store.close()
    assert len(segments()) == 1
    store.carriers.let_go(delta)
    assert not segments()
