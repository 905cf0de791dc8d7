"""What differs between two versions, as a source says it, and an engine that is brought it without a server."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, groupby

import torch
from msgspec import structs

from ckpt_transport import Engine, LoadedBucket, Report, dtypes
from ckpt_transport.deltas import encode
from ckpt_transport.planning import Carrier, Delta, DeltaForm, PlacedBytes, PlacedTensor, TensorSpec
from ckpt_transport.planning.values.alignment import align_up
from ckpt_transport.update.delta_engine import DeltaEngine
from ckpt_transport.update.element_maps import ElementMaps

Tensors = Mapping[str, torch.Tensor]
PLENTY = 1 << 40


def spec_of(name: str, tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(name, dtypes.name_of(tensor.dtype), tuple(tensor.shape))


def pool_of(tensors: Tensors) -> tuple[torch.Tensor, tuple[PlacedTensor, ...]]:
    """A version as it lies in one extent, and where each tensor is."""
    placed, at = [], 0
    for name, tensor in tensors.items():
        placed.append(PlacedTensor(spec_of(name, tensor), 0, at, tensor.nbytes))
        at = align_up(at + tensor.nbytes)
    pool = torch.zeros(at, dtype=torch.uint8)
    for place, tensor in zip(placed, tensors.values(), strict=True):
        raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
        pool[place.offset : place.offset + place.nbytes] = raw
    return pool, tuple(placed)


def delta_of(
    base: str, old: Tensors, new: Tensors, range_bytes: int = 1 << 16, whole: Collection[str] = ()
) -> tuple[Delta, dict[str, torch.Tensor]]:
    """What differs, and all of some tensors; carriers by name.

    Ranges are of ``range_bytes``, and shorter where item sizes change; those of tensors if some come whole.
    """
    (before, placed), (now, _) = pool_of(old), pool_of(new)
    carriers: list[Carrier] = []
    brought: dict[str, torch.Tensor] = {}
    for place in placed:
        if place.spec.name in whole:
            name, unit = f"carrier-{len(carriers)}", dtypes.TORCH[place.spec.dtype].itemsize
            count = place.nbytes // unit
            carriers.append(Carrier(name, 0, place.offset, place.nbytes, unit, DeltaForm.WHOLE, count))
            brought[name] = now[place.offset : place.offset + place.nbytes].clone()
    others = [[each] for each in placed if each.spec.name not in whole] if whole else [placed]
    for low, high, unit in chain.from_iterable(_ranges(each, range_bytes) for each in others):
        encoded = encode(before[low:high].clone(), now[low:high].clone(), unit)
        if encoded.count:
            name = f"carrier-{len(carriers)}"
            carriers.append(Carrier(name, 0, low, high - low, unit, encoded.form, encoded.count))
            brought[name] = encoded.raw
    return Delta(base, placed, tuple(carriers)), brought


def _ranges(placed: Sequence[PlacedTensor], range_bytes: int) -> Iterator[tuple[int, int, int]]:
    for unit, places in groupby(placed, key=lambda place: dtypes.TORCH[place.spec.dtype].itemsize):
        first, *_, last = [*places] * 2
        end = align_up(last.offset + last.nbytes)
        yield from ((low, min(low + range_bytes, end), unit) for low in range(first.offset, end, range_bytes))


def base_of(report: Report | None) -> str:
    """Against which version a delta was sent; empty where everything was."""
    assert report is not None
    assert report.delta is not None
    return report.delta.base


def sent_by_delta(report: Report | None, base: str) -> Report:
    """A report that says so."""
    assert base_of(report) == base, report
    assert report is not None
    return report


def staged(
    engine: Engine, delta: Delta, brought: Tensors, maps: ElementMaps | None = None, budget: int = PLENTY
) -> DeltaEngine:
    """Have an engine take a delta up to where it would be exchanged."""
    return staged_of_sources(engine, [(delta, brought)], maps, budget)


def staged_of_sources(
    engine: Engine,
    sources: Sequence[tuple[Delta, Tensors]],
    maps: ElementMaps | None = None,
    budget: int = PLENTY,
) -> DeltaEngine:
    """The same of a delta of each source; its carriers are named after it."""
    deltas: list[Delta] = []
    brought: dict[str, torch.Tensor] = {}
    for number, (delta, own) in enumerate(sources):
        carriers = tuple(structs.replace(each, name=f"{number}-{each.name}") for each in delta.carriers)
        deltas.append(structs.replace(delta, carriers=carriers))
        brought |= {f"{number}-{name}": raw for name, raw in own.items()}
    engine.begin()
    taking = DeltaEngine(engine, deltas[0].base, ElementMaps() if maps is None else maps)
    if reason := taking.can_stage(budget):
        raise AssertionError(reason)
    taking.stage()
    specs = [spec_of(name, tensor) for name, tensor in brought.items()]
    taking.take(deltas, specs)
    taking.prepare(specs, None)
    for spec, raw in zip(specs, brought.values(), strict=True):
        for low, high in ((0, spec.nbytes // 2), (spec.nbytes // 2, spec.nbytes)):
            place = PlacedBytes(spec, low, 0, high - low)
            taking.load(LoadedBucket(place, raw[low:high], lambda place=place: [place]))  # type: ignore[misc]
    taking.finish()
    return taking


def exchanged(taking: DeltaEngine) -> None:
    """Hold, exchange and go on."""
    taking.hold()
    taking.advance(0, 5)
    taking.confirm()
    taking.exchange()
    taking.certify()
    taking.resume()
