"""The manifest of a version, out of those of its sources."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from ckpt_transport.errors import CheckpointError
from ckpt_transport.planning import Conversion, Manifest, spread
from tests.unit.worlds import manifest, manifests


def merge(version: str, shards: Sequence[Manifest]) -> Manifest:
    """What they hold together, where nobody holds what another one does."""
    return spread(version, shards, {}, (), whole=False)


def shards(version: Manifest) -> list[Manifest]:
    """What each owner of a version would say it holds."""
    parts = []
    for owner in version.owners:
        own = [number for number, extent in enumerate(version.extents) if extent.owner == owner]
        tensors = tuple(
            msgspec.structs.replace(tensor, extent=own.index(tensor.extent))
            for tensor in version.tensors
            if tensor.extent in own
        )
        parts.append(Manifest(version.version, tuple(version.extents[number] for number in own), tensors))
    return parts


@checked(max_examples=50, deadline=None)
@given(st.integers(1, 4).flatmap(manifests))
def test_given_the_shards_of_a_version_then_merging_them_gives_the_version(version: Manifest) -> None:
    merged = merge(version.version, shards(version))
    assert merged.extents == version.extents
    assert set(merged.tensors) == set(version.tensors)
    assert len(merged.tensors) == len(version.tensors)
    assert merged.nbytes == version.nbytes == sum(tensor.spec.nbytes for tensor in version.tensors)
    for number, extent in enumerate(merged.extents):
        own = [other for other in merged.extents if other.owner == extent.owner]
        assert own[merged.region_of(number)] == extent


def test_given_a_tensor_that_two_sources_hold_then_both_are_named() -> None:
    one, two = shards(manifest([1, 2], [3]))
    twice = msgspec.structs.replace(two, tensors=one.tensors[:1])
    with pytest.raises(
        CheckpointError, match=r"bytes 0 to \d+ of tensor '0\.0' are held twice, by source ranks 0 and 1"
    ):
        merge("step-2", [one, twice])
    with pytest.raises(CheckpointError, match=r"source rank 0 holds bytes 0 to \d+ of tensor '0\.0' twice; leave one"):
        merge("step-2", [msgspec.structs.replace(one, tensors=one.tensors[:1] * 2)])


def test_given_a_source_with_another_version_then_both_versions_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"'step-1' where 'step-2'"):
        merge("step-2", [manifest([1]), manifest([1], version="step-1")])


def test_given_a_tensor_then_it_says_what_it_is() -> None:
    assert str(manifest([7]).tensors[0].spec) == "0.0 (U8 [7])"


def test_given_what_sources_compute_then_it_is_known_of_the_whole_version() -> None:
    one, two = shards(manifest([1, 2], [3]))
    how = "BF16 from F32"
    merged = merge(
        "step-2",
        [
            msgspec.structs.replace(one, conversions=(Conversion(how, ("0.1",)),)),
            msgspec.structs.replace(two, conversions=(Conversion("other", ("1.0",)), Conversion(how, ("0.1", "1.0")))),
        ],
    )
    assert merged.conversions == (Conversion(how, ("0.1", "1.0")), Conversion("other", ("1.0",)))


def test_given_the_rules_that_sources_have_applied_then_the_whole_version_has_each_mapping_once() -> None:
    one, two = shards(manifest([1, 2], [3]))
    same = ["strip module.", "strip module."]
    for said, kept in ((same, ("strip module.",)), (["drop a", "strip module."], ("drop a", "strip module."))):
        held = [msgspec.structs.replace(each, mappings=(rule,)) for each, rule in zip((one, two), said, strict=True)]
        assert merge("step-2", held).mappings == kept
