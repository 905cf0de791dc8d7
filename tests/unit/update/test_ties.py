"""Which tied names are compared, who is asked for digests, and what is refused."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
import torch

from ckpt_transport.checkpoint import Store, StoredVersion, with_digests
from ckpt_transport.errors import PlanMismatchError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import Manifest, Role, spread
from ckpt_transport.update import messages as m
from ckpt_transport.update.ties import CHUNK_BYTES, Ties, digests_of

TIE = ("embed", "head")


def join(manifest: Manifest | None = None, *ties: tuple[str, ...]) -> m.Join:
    role = Role.SINK if manifest is None else Role.SOURCE
    return m.Join(
        update="u", role=role, uid="", label="the engine", host="h", budget=0, transports=(), unavailable={}, routes=(),
        manifest=manifest, ties=ties,
    )  # fmt: skip


def stored(**tensors: torch.Tensor) -> StoredVersion:
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        return store.register("v1", tensors=tensors)


def of(*versions: StoredVersion) -> Manifest:
    shards = [version.manifest.owned_by(rank) for rank, version in enumerate(versions)]
    return spread("v1", shards, {}, (), whole=False)


def answers(ties: Ties, *versions: StoredVersion) -> dict[int, tuple[bytes, ...]]:
    return {rank: digests_of(ties.asked_of(rank), version.extents) for rank, version in enumerate(versions)}


def test_given_no_ties_or_one_name_of_each_then_nobody_is_asked() -> None:
    version = stored(embed=torch.ones(3), norm=torch.ones(2))
    for sink in (join(), join(None, TIE)):
        ties = Ties([join(version.manifest), sink], of(version))
        assert ties.asked_of(0) == ()
        ties.check({0: ()}, "v1")


def test_given_one_tensor_under_both_names_then_nobody_is_asked() -> None:
    weight = torch.ones(3, 3)
    version = stored(embed=weight, head=weight)
    assert version.manifest.same == (TIE,)
    assert Ties([join(version.manifest), join(None, TIE)], of(version)).asked_of(0) == ()


def test_given_a_conjugate_or_a_transpose_of_the_same_memory_then_it_is_not_the_same() -> None:
    weight = torch.randn(3, 3, dtype=torch.complex64)
    assert stored(embed=weight, conj=weight.conj(), turned=weight.t(), other=weight[:2]).manifest.same == ()


@pytest.mark.parametrize("owners", [1, 2])
def test_given_both_names_then_each_owner_is_asked_for_what_it_has(owners: int) -> None:
    weight = torch.arange(7.0)
    for other, differs in ((weight.clone(), False), (weight + 1, True)):
        if owners == 1:
            versions = [stored(norm=torch.ones(1), embed=weight, head=other)]
        else:
            versions = [stored(norm=torch.ones(1), embed=weight), stored(more=torch.ones(9), head=other)]
        joins = [*(join(version.manifest) for version in versions), join(None, ("gone", *TIE))]
        ties = Ties(joins, of(*versions))
        found = answers(ties, *versions)
        assert [digest for each in found.values() for digest in each] == [
            hashlib.blake2b(tensor.numpy().tobytes(), digest_size=16).digest() for tensor in (weight, other)
        ]
        if differs:
            with pytest.raises(PlanMismatchError, match="embed and head have one memory in the engine and different"):
                ties.check(found, "v1")
        else:
            ties.check(found, "v1")


def test_given_digests_that_a_holder_has_told_then_nobody_is_asked() -> None:
    version = stored(embed=torch.ones(3), head=torch.zeros(3))
    told = with_digests(version).manifest
    ties = Ties([join(told), join(None, TIE)], of(version))
    assert ties.asked_of(0) == ()
    with pytest.raises(PlanMismatchError, match="embed and head"):
        ties.check({}, "v1")


def test_given_tied_names_of_other_shapes_then_they_are_refused_before_anybody_is_asked() -> None:
    version = stored(embed=torch.ones(3), head=torch.ones(4))
    with pytest.raises(PlanMismatchError, match=r"embed \(F32 \[3\]\) and head \(F32 \[4\]\).* are not alike"):
        Ties([join(version.manifest), join(None, TIE)], of(version))


def test_given_a_tensor_however_long_then_its_digest_is_of_all_bytes() -> None:
    tensor = torch.arange(CHUNK_BYTES + 3, dtype=torch.int64).to(torch.uint8)
    version = stored(first=torch.ones(5), long=tensor)
    (found,) = digests_of(version.manifest.tensors[1:], version.extents)
    assert found == with_digests(version).manifest.digests[1]


def test_given_a_place_outside_of_the_extents_then_it_is_refused() -> None:
    version = stored(embed=torch.ones(3))
    (place,) = version.manifest.tensors
    for wrong in (
        {"extent": 1},
        {"extent": -1},
        {"offset": 10_000},
        {"offset": -1},
        {"nbytes": 10_000},
        {"nbytes": -1},
    ):
        with pytest.raises(PlanMismatchError, match="does not lie where"):
            digests_of([msgspec.structs.replace(place, **wrong)], version.extents)
