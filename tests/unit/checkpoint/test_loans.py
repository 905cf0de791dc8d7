"""Given tensors that are lent at each step, then a step finds what the one before has found, and nothing else."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport import Mapping, StoredVersion, rules
from ckpt_transport.checkpoint import Store
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import MemoryKind
from tests.looks import Looks

Tensors = dict[str, torch.Tensor]


def step(store: Store, version: str, tensors: Tensors, mapping: Mapping | None = None) -> tuple[StoredVersion, Tensors]:
    """Lend a version, and read what a sink would get of it."""
    stored = store.lend(version, tensors, mapping=mapping)
    (extent,) = stored.extents
    slot = torch.zeros(extent.nbytes, dtype=torch.uint8)
    extent.fill(slot, 0)
    extent.check()
    found = {place.spec.name: slot[place.offset : place.offset + place.nbytes] for place in stored.manifest.tensors}
    store.unregister(version)
    return stored, found


def fresh(tensors: Tensors, mapping: Mapping | None = None) -> tuple[StoredVersion, Tensors]:
    """The same, of a store that has seen nothing before."""
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        return step(store, "v", tensors, mapping)


def alike(one: tuple[StoredVersion, Tensors], other: tuple[StoredVersion, Tensors]) -> bool:
    (stored, found), (expected, wanted) = one, other
    manifests = [each.manifest for each in (stored, expected)]
    described = [(each.extents, each.tensors, each.same, each.conversions, each.replicated) for each in manifests]
    return (
        described[0] == described[1]
        and found.keys() == wanted.keys()
        and all(torch.equal(found[name], wanted[name]) for name in wanted)
    )


def model() -> Tensors:
    shared = torch.arange(40, dtype=torch.float32)
    return {
        "embed": shared.view(4, 10),
        "norm": torch.ones(7, dtype=torch.bfloat16),
        "empty": torch.ones(0, 3),
        "scale": torch.tensor(3.0),
        "head": shared.view(4, 10),
    }


def written(tensors: Tensors) -> Tensors:
    for tensor in tensors.values():
        tensor.add_(1)
    return tensors


def freed(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


def looked_up_anew(tensors: Tensors) -> Tensors:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def moved(tensors: Tensors) -> Tensors:
    copies = {tensor.data_ptr(): tensor.clone() for tensor in tensors.values()}
    return {name: copies[tensor.data_ptr()].view(tensor.shape) for name, tensor in tensors.items()}


def untied(tensors: Tensors) -> Tensors:
    return tensors | {"head": tensors["head"].clone()}


def tied(tensors: Tensors) -> Tensors:
    return tensors | {"norm": torch.ones(7, dtype=torch.bfloat16), "more": tensors["norm"]}


def of_other_names(tensors: Tensors) -> Tensors:
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def in_another_order(tensors: Tensors) -> Tensors:
    return dict(reversed(tensors.items()))


def of_another_shape(tensors: Tensors) -> Tensors:
    return tensors | {"embed": tensors["embed"].view(10, 4)}


def of_another_dtype(tensors: Tensors) -> Tensors:
    return tensors | {"norm": tensors["norm"].view(torch.float16)}


def through_data(tensors: Tensors) -> Tensors:
    tensors["norm"].data = torch.full((7,), 2, dtype=torch.bfloat16)
    return tensors


def with_what_is_no_tensor(tensors: Tensors) -> Tensors:
    return tensors | {"_extra_state": None}  # type: ignore[return-value]


CHANGES = [
    written,
    looked_up_anew,
    moved,
    untied,
    tied,
    of_other_names,
    in_another_order,
    of_another_shape,
    of_another_dtype,
    through_data,
    with_what_is_no_tensor,
]
RENAMED = Mapping.of(rules.Rename("(.*)", "engine.\\1"))
CAST = Mapping.of(rules.Cast("F32", ".*norm"))


@given(st.lists(st.sampled_from(CHANGES), max_size=4), st.sampled_from([None, RENAMED, CAST]))
def test_given_any_changes_between_steps_then_each_step_lends_what_a_new_store_would(
    changes: list[Callable[[Tensors], Tensors]], mapping: Mapping | None
) -> None:
    """Each change is one of the same tensors."""
    own = model()
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        step(store, "v0", own, mapping)
        for number, change in enumerate(changes, 1):
            tensors = change(own)
            found = step(store, f"v{number}", tensors, mapping)
            assert alike(found, fresh(tensors, mapping))


@pytest.mark.parametrize("mapping", [None, RENAMED])
@pytest.mark.parametrize("change", [written, looked_up_anew, moved, through_data])
def test_given_the_same_tensors_then_the_manifest_of_the_step_before_serves_again(
    change: Callable[[Tensors], Tensors], mapping: Mapping | None
) -> None:
    """Then a plan need not be compared tensor by tensor."""
    tensors = model()
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        first, _ = step(store, "v1", tensors, mapping)
        second, _ = step(store, "v2", change(tensors), mapping)
    assert second.manifest.tensors is first.manifest.tensors


def test_given_another_mapping_then_it_is_applied() -> None:
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        plain, _ = step(store, "v1", model())
        renamed, _ = step(store, "v2", model(), RENAMED)
    names = [place.spec.name for place in plain.manifest.tensors]
    assert [place.spec.name for place in renamed.manifest.tensors] == [f"engine.{name}" for name in names]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda tensors: tensors | {"embed": tensors["embed"].t()}, "'embed' is not contiguous"),
        (lambda tensors: tensors | {"norm": torch.zeros(7, dtype=torch.bfloat16, device="meta")}, "'norm' is on the m"),
        (lambda tensors: tensors | {"norm": torch.ones(7).to_sparse()}, "'norm' is torch.sparse_coo"),
        (lambda tensors: tensors | {"norm": freed(tensors["norm"])}, "'norm' has no memory any more"),
    ],
)
def test_given_a_tensor_that_cannot_be_lent_any_more_then_it_is_named(
    spoil: Callable[[Tensors], Tensors], says: str
) -> None:
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        step(store, "v1", model())
        with pytest.raises(CheckpointError, match=says):
            store.lend("v2", spoil(model()))
        step(store, "v3", model())


def test_given_a_conjugate_view_at_the_same_address_then_it_is_named() -> None:
    tensor = torch.ones(3, dtype=torch.complex64)
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        step(store, "v1", {"a": tensor})
        with pytest.raises(CheckpointError, match="'a' is a conjugate or negative view"):
            store.lend("v2", {"a": tensor.conj()})


@pytest.mark.parametrize("inference", [False, True])
def test_given_a_write_at_a_later_step_then_it_is_noticed(inference: bool) -> None:
    with torch.inference_mode(inference):
        tensors = {f"t{number}": torch.ones(5) for number in range(100)}
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        step(store, "v1", {name: torch.ones(5) for name in tensors})
        (extent,) = store.lend("v2", tensors).extents
        extent.check()
        with torch.inference_mode(inference):
            for tensor in tensors.values():
                tensor.mul_(3)
        with pytest.raises(CheckpointError, match=r"'t0' and \d+ more was changed"):
            extent.check()


def test_given_a_version_that_was_unregistered_then_the_store_keeps_no_memory_of_its_owner() -> None:
    array = np.ones(1000, np.float32)
    kept = weakref.ref(array)
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        for version in ("v1", "v2"):
            step(store, version, {"a": torch.from_numpy(array)})
        del array
        assert kept() is None


def test_given_a_tensor_that_is_left_out_as_equal_when_it_is_equal_no_more_then_that_is_noticed() -> None:
    """The rule looks at bytes, which a step may change without a change of names, shapes and addresses."""
    tensors = model() | {"head": model()["embed"].clone()}
    tie = Mapping.of(rules.Tie("head", "embed"))
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        step(store, "v1", tensors, tie)
        tensors["head"].add_(1)
        with pytest.raises(CheckpointError, match="'head' has other bytes than 'embed'"):
            store.lend("v2", tensors, mapping=tie)


@pytest.mark.parametrize("change", [written, moved])
def test_given_the_same_tensors_again_then_each_is_looked_at_as_rarely_as_can_be(
    change: Callable[[Tensors], Tensors],
) -> None:
    """What is sampled of some comes on top."""
    tensors = {f"t{number}": torch.ones(5) for number in range(1000)}
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        step(store, "v1", tensors)
        tensors = change(tensors)
        with Looks() as lending:
            (extent,) = store.lend("v2", tensors).extents
        with Looks() as checking:
            extent.check()
    assert lending.of_each(1000) == Counter(is_nested=1, data_ptr=1, untyped_storage=1, _version=1)
    assert checking.of_each(1000) == Counter(_version=1)
