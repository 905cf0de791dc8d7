"""What differs is divided among those who serve parts of a version: each is sent what has changed in its own, once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport import dtypes
from ckpt_transport.deltas import (
    CopiedBytes,
    Differences,
    ElementMap,
    ForShares,
    HostExchange,
    delta_manifest,
    find_differences,
    locate_on_host,
    of_one_range,
    ranges_of,
)
from ckpt_transport.errors import DeltaRefusedError, PlanMismatchError
from ckpt_transport.memory import Buffer, ElementCopy, MemoryKind, StridedBytes, StridedRange
from ckpt_transport.planning import (
    Carrier,
    Delta,
    DeltaForm,
    Extent,
    Manifest,
    PlacedTensor,
    ServedShares,
    Share,
    TensorSpec,
    carried_share,
    digest_of,
)
from ckpt_transport.planning.values.alignment import align_up

UNITS = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
Version = tuple[PlacedTensor, ...]


@st.composite
def versions(draw: st.DrawFn) -> Version:
    """Matrices of several types, one behind the other."""
    placed, at = [], 0
    for number in range(draw(st.integers(1, 4))):
        spec = TensorSpec(
            f"t{number}", draw(st.sampled_from(sorted(UNITS))), (draw(st.integers(1, 40)), draw(st.integers(1, 90)))
        )
        placed.append(PlacedTensor(spec, 0, at, spec.nbytes))
        at = align_up(at + spec.nbytes)
    return tuple(placed)


@st.composite
def shares_of(draw: st.DrawFn, version: Version) -> Share:
    """A box of rows and columns of each tensor, or none of it, or all."""
    ranges: list[tuple[str, int, int]] = []
    slices: list[tuple[str, StridedRange]] = []
    for tensor in version:
        (rows, columns), item = tensor.spec.shape, dtypes.TORCH[tensor.spec.dtype].itemsize
        top, left = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
        height, width = draw(st.integers(0, rows - top)), draw(st.integers(1, columns - left))
        if not height:
            continue
        if width == columns:
            ranges.append((tensor.spec.name, top * columns * item, height * columns * item))
        else:
            stride = columns * item
            ranges.append((tensor.spec.name, 0, tensor.nbytes))
            slices.append((tensor.spec.name, StridedRange(top * stride + left * item, width * item, height, stride)))
    return Share(digest_of(tensor.spec for tensor in version), tuple(ranges), tuple(slices))


def mask_of(share: Share, version: Version, nbytes: int) -> torch.Tensor:
    """Which bytes of the extent a share has."""
    at = {tensor.spec.name: tensor.offset for tensor in version}
    mask = torch.zeros(nbytes, dtype=torch.bool)
    for name, part in share.reads():
        for run in range(part.runs):
            start = at[name] + part.start + run * part.stride
            mask[start : start + part.nbytes] = True
    return mask


def nbytes_of(version: Version) -> int:
    return align_up(version[-1].offset + version[-1].nbytes)


def differences_of(version: Version, base: torch.Tensor, new: torch.Tensor, most: int) -> Differences:
    found = find_differences(
        ranges_of(version, most), [Buffer(base)], [CopiedBytes(Buffer(new))], 1 << 40, lambda: None
    )
    assert found is not None
    return found


def sent(
    divided: Differences, share: Share | None, version: Version
) -> tuple[Sequence[Carrier], dict[str, torch.Tensor]]:
    """The carriers that a sink with this share is sent, and their bytes by name."""
    raws = [each.encoded.raw for each in divided.found]
    manifest = Manifest("v2", (), version)
    made = delta_manifest(manifest, "v1", divided, Extent(0, 0, MemoryKind.PRIVATE), [0] * len(raws))
    specs = tuple(placed.spec for placed in made.tensors)
    mine = carried_share(made.deltas, specs, share)
    names = {spec.name for spec in specs} if mine is None else {name for name, *_ in mine.ranges}
    raw = {spec.name: each for spec, each in zip(specs, raws, strict=True)}
    return [each for each in made.deltas[0].carriers if each.name in names and each.count], raw


def written(base: torch.Tensor, carriers: Sequence[Carrier], raw: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a sink that holds all of the base makes of what it is sent."""
    holds = base.clone()
    spec = TensorSpec("all", "U8", (len(base),))
    copies = StridedBytes.of([ElementCopy(0, 0, 0, 0, 1, (len(base),), (1,), (1,))])
    known = ElementMap([PlacedTensor(spec, 0, 0, len(base))], [spec], copies, torch.device("cpu"))
    kept = {name: each.clone() for name, each in raw.items()}
    for group in of_one_range(carriers):
        HostExchange(locate_on_host(group, kept, known, np.array([holds.data_ptr()]))).exchange()
    return holds


@given(st.data(), st.floats(0, 1), st.sampled_from([256, 1024, 1 << 20]), st.booleans())
def test_given_boxes_then_each_share_is_sent_what_has_changed_in_it_and_nothing_else(
    data: st.DataObject, density: float, most: int, everything: bool
) -> None:
    version = data.draw(versions())
    shares = [data.draw(shares_of(version)) for _ in range(data.draw(st.integers(1, 3)))]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    base = torch.zeros(nbytes_of(version), dtype=torch.uint8)
    new = base.clone()
    for tensor in version:
        item = UNITS[tensor.spec.dtype]
        changed = torch.rand(tensor.nbytes // item, generator=generator) < density
        new[tensor.offset : tensor.offset + tensor.nbytes].view(-1, item)[changed] = 7
    served = ServedShares.of([*shares, *([None] if everything else [])])
    found = differences_of(version, base, new, most)
    is_exact = all(each.encoded.form is not DeltaForm.WHOLE for each in found.found)
    divided = ForShares(version, served).divide(found)
    for share in shares:
        mask = mask_of(share, version, len(new))
        carriers, raw = sent(divided, share, version)
        assert torch.equal(written(base, carriers, raw), torch.where(mask, new, base))
        carried_bytes = sum(each.count * each.unit for each in carriers)
        changed_bytes = int((mask & (new != base)).sum())
        assert carried_bytes == changed_bytes or not is_exact, "a range that is carried whole has other elements, too"
        assert carried_bytes <= int(mask.sum())
    if everything:
        assert torch.equal(written(base, *sent(divided, None, version)), new)


def columns(first: int) -> Share:
    """Half of the columns of a matrix of 64 x 64 of BF16."""
    spec = TensorSpec("m", "BF16", (64, 64))
    return Share(digest_of([spec]), (("m", 0, 8192),), (("m", StridedRange(first * 2, 64, 64, 128)),))


def test_given_halves_of_the_columns_then_each_is_sent_half_the_bytes() -> None:
    version = (PlacedTensor(TensorSpec("m", "BF16", (64, 64)), 0, 0, 8192),)
    base = torch.zeros(8192, dtype=torch.uint8)
    new = base.clone()
    new.view(torch.int16)[::32] = 3
    whole = differences_of(version, base, new, 1 << 20)
    halves = ServedShares.of([columns(0), columns(32)])
    divided = ForShares(version, halves).divide(whole)
    for share in halves.shares:
        carriers, raw = sent(divided, share, version)
        (carrier,) = carriers
        assert carrier.count * 2 == whole.changed
        assert raw[carrier.name].numel() <= whole.nbytes // 2 + 16


def test_given_a_share_in_which_nothing_has_changed_then_it_is_sent_an_empty_carrier() -> None:
    version = (PlacedTensor(TensorSpec("m", "BF16", (64, 64)), 0, 0, 8192),)
    base = torch.zeros(8192, dtype=torch.uint8)
    new = base.clone()
    new.view(torch.int16)[0] = 3
    divided = ForShares(version, ServedShares.of([columns(0), columns(32)])).divide(
        differences_of(version, base, new, 1 << 20)
    )
    assert [(each.encoded.count, each.shares) for each in divided.found] == [(1, (0,)), (0, (0, 1))]


def test_given_a_share_that_no_source_has_heard_of_then_it_is_refused() -> None:
    delta = Delta("v1", (), (Carrier("c", 0, 0, 8, 2, DeltaForm.LIST, 1, (0,)),), ("another",))
    with pytest.raises(DeltaRefusedError, match="serves another part of the version"):
        carried_share([delta], [TensorSpec("c", "U8", (16,))], columns(0))


def test_given_carriers_that_bring_one_element_twice_then_they_are_refused() -> None:
    one, other = (Carrier(name, 0, 0, 4, 2, DeltaForm.WHOLE, 2) for name in ("a", "b"))
    raw = dict.fromkeys(("a", "b"), torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(PlanMismatchError, match="a and b carry one element twice"):
        written(torch.zeros(4, dtype=torch.uint8), [one, other], raw)
    wide = Carrier("c", 0, 0, 4, 4, DeltaForm.WHOLE, 1)
    with pytest.raises(PlanMismatchError, match="a and c carry elements of one range"):
        list(of_one_range([one, wide]))


@pytest.mark.parametrize(
    "part",
    [
        StridedRange(-2, 4),
        StridedRange(0, 0),
        StridedRange(0, 8194),
        StridedRange(0, 64, 65, 128),
        StridedRange(0, 64, 1 << 62, 64),
        StridedRange(0, 64, 2, 0),
        StridedRange(0, 64, 0, 128),
    ],
)
def test_given_a_share_with_bytes_that_a_tensor_has_not_then_it_is_refused_by_name(part: StridedRange) -> None:
    spec = TensorSpec("m", "BF16", (64, 64))
    share = Share(digest_of([spec]), (("m", 0, 8192),), (("m", part),))
    with pytest.raises(DeltaRefusedError, match=r"says that it serves .* of m"):
        ForShares((PlacedTensor(spec, 0, 0, 8192),), ServedShares.of([share]))


def test_given_more_shares_than_bits_of_a_byte_then_each_is_sent_its_columns_and_no_others() -> None:
    spec = TensorSpec("m", "BF16", (64, 64))
    version = (PlacedTensor(spec, 0, 0, 8192),)
    base = torch.zeros(8192, dtype=torch.uint8)
    new = base.clone()
    new.view(torch.int16)[::3] = 3
    shares = [
        Share(digest_of([spec]), (("m", 0, 8192),), (("m", StridedRange(8 * number, 16, 64, 128)),))
        for number in range(15)
    ]
    divided = ForShares(version, ServedShares.of(shares)).divide(differences_of(version, base, new, 1 << 20))
    for share in shares:
        carriers, raw = sent(divided, share, version)
        mask = mask_of(share, version, 8192)
        assert torch.equal(written(base, carriers, raw), torch.where(mask, new, base))


@settings(max_examples=12, deadline=None)
@given(
    widths=st.lists(st.sampled_from([4096, 512, 1000, 33]), min_size=2, max_size=4),
    density=st.sampled_from([0.02, 0.2, 0.5, 0.99, 1]),
    parts=st.integers(2, 4),
    moved=st.sampled_from([0, 64, 2]),
    seed=st.integers(0, 9),
)
def test_given_matrices_of_many_blocks_then_rows_and_columns_are_sent_to_those_who_have_them(
    widths: list[int], density: float, parts: int, moved: int, seed: int
) -> None:
    """Long runs and short ones, of whole words of bits or not, for ranks whose parts may lie over each other."""
    version, at = [], 0
    for number, width in enumerate(widths):
        spec = TensorSpec(f"t{number}", "BF16", ((1 << 19) // width, width))
        version.append(PlacedTensor(spec, 0, at, spec.nbytes))
        at = align_up(at + spec.nbytes)
    generator = torch.Generator().manual_seed(seed)
    base = torch.zeros(at, dtype=torch.uint8)
    new = base.clone()
    units = new.view(torch.int16)
    units[torch.rand(len(units), generator=generator) < density] = 7
    shares = []
    for rank in range(parts):
        ranges, slices = [], []
        for number, tensor in enumerate(version):
            (rows, width), name = tensor.spec.shape, tensor.spec.name
            if number % 2:
                high = rows // parts
                ranges.append((name, rank * high * width * 2, high * width * 2))
            else:
                left = max(width // parts * rank * 2 - moved, 0)
                ranges.append((name, 0, tensor.nbytes))
                slices.append((name, StridedRange(left, width // parts * 2, rows, width * 2)))
        shares.append(Share(digest_of(tensor.spec for tensor in version), tuple(ranges), tuple(slices)))
    divided = ForShares(tuple(version), ServedShares.of(shares)).divide(
        differences_of(tuple(version), base, new, 3 << 20)
    )
    for share in shares:
        carriers, raw = sent(divided, share, tuple(version))
        mask = mask_of(share, tuple(version), len(new))
        assert torch.equal(written(base, carriers, raw), torch.where(mask, new, base))
        if density < 1:
            changed_bytes = int((mask & (new.view(torch.int16) != base.view(torch.int16)).repeat_interleave(2)).sum())
            held = sum(each.count * each.unit for each in carriers)
            assert held == changed_bytes or density > 0.9, "a range that is carried whole has other elements, too"
