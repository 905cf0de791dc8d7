"""Helpers for tests of recordings: a checkpoint in a bucket, and both ways of loading it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import torch

from ckpt_transport import LoadedBucket, dtypes
from ckpt_transport.memory import DistantMemory, DistantRuns, HostCopies, MemoryRun, Runs, this_process
from ckpt_transport.planning import PlacedBytes, TensorSpec
from ckpt_transport.planning.values.alignment import align_up
from ckpt_transport.replay import BucketCopyPlans, Loader, Recording, Replay, record

Tensors = Mapping[str, torch.Tensor]
Lies = Callable[[torch.Tensor, Sequence[tuple[str, int, int, int]]], Runs]


def specs_of(tensors: Tensors) -> list[TensorSpec]:
    return [TensorSpec(name, dtypes.name_of(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer as bytes."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach().clone().contiguous().view(-1).view(torch.uint8) for name, tensor in named.items()}


def same(one: Tensors, other: Tensors) -> list[str]:
    """Names that differ."""
    return [name for name in one if not torch.equal(one[name], other[name])]


def buckets(tensors: Tensors, nbytes: int) -> list[tuple[torch.Tensor, list[tuple[str, int, int, int]]]]:
    """The checkpoint in buckets of ``nbytes``, cut through tensors: bytes, and (name, offset, at, length) of pieces."""
    done: list[tuple[torch.Tensor, list[tuple[str, int, int, int]]]] = []
    flat: list[tuple[str, int, torch.Tensor]] = []
    end = 0
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(-1).view(torch.uint8)
        flat.append((name, end, raw))
        end = align_up(end + raw.numel())
    for begin in range(0, end, nbytes):
        bucket = torch.zeros(nbytes, dtype=torch.uint8)
        pieces = []
        for name, start, raw in flat:
            first, last = max(start, begin), min(start + raw.numel(), begin + nbytes)
            if first < last:
                bucket[first - begin : last - begin] = raw[first - start : last - start]
                pieces.append((name, first - start, first - begin, last - first))
        done.append((bucket, pieces))
    return done


def apart(raw: torch.Tensor, pieces: Sequence[tuple[str, int, int, int]]) -> Runs:
    """The same pieces, each in memory of its own, which is aligned as little as a sender's may be."""
    before = torch.zeros(8, dtype=torch.uint8)
    return [MemoryRun(at, torch.cat((before, raw[at : at + length]))[8:]) for _, _, at, length in pieces]


def together(raw: torch.Tensor, pieces: Sequence[tuple[str, int, int, int]]) -> Runs:
    """A bucket as it lies in a slot."""
    return [MemoryRun(0, raw)]


def distant(raw: torch.Tensor, pieces: Sequence[tuple[str, int, int, int]]) -> Runs:
    """The same, as if that memory could only be read by the system."""
    memory = apart(raw, pieces)
    places = [(at, view.data_ptr(), view.numel()) for at, view in memory]
    starts, addresses, sizes = zip(*places, strict=True) if places else ((), (), ())

    def read(copies: HostCopies, keeps: Runs = memory) -> None:
        this_process().read(copies)

    return DistantRuns(DistantMemory(starts, addresses, sizes, read))


def replay(
    recording: Recording, module: torch.nn.Module, tensors: Tensors, nbytes: int = 1 << 20, lies: Lies = together
) -> None:
    """Bring ``tensors`` into ``module`` by its layout alone, in buckets of ``nbytes``, which lie in memory so."""
    plans = BucketCopyPlans(recording.layout)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    bound = {number: named[target.name].detach() for number, target in enumerate(recording.layout.targets)}
    specs = {spec.name: spec for spec in specs_of(tensors)}
    run = Replay(plans, bound)
    for number, (raw, pieces) in enumerate(buckets(tensors, nbytes)):
        places = [PlacedBytes(specs[name], offset, at, length) for name, offset, at, length in pieces]
        bucket = LoadedBucket(number, lies(raw, pieces), lambda places=places: places)  # type: ignore[misc]
        plan = plans.of(bucket)
        if isinstance(bucket.runs, DistantRuns):
            bucket.runs.memory.read_into(run.landing(plan))
            run.landed(plan)
        else:
            run.run(plan, bucket)
    run.fill(range(len(recording.layout.targets)))
    run.finish()


def scramble(module: torch.nn.Module, seed: int = 99) -> None:
    """Give every parameter other bits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator).to(parameter.dtype))


def replays_as_it_loads(
    module: torch.nn.Module, load: Loader, tensors: Tensors, sizes: Sequence[int] = (1 << 20, 1024)
) -> Recording:
    """Record ``load``; see that the replay leaves what the loader leaves, byte for byte.

    For buckets of all sizes, which lie in one run of memory, in one for each piece, or in another process."""
    scramble(module)
    before = state(module)
    recording = record(module, load, specs_of(tensors))
    assert same(before, state(module)) == [], "recording changed the module"
    assert not recording.layout.refused, recording.layout.why()
    with torch.no_grad():
        load(tensors.items())
        expected = state(module)
        for nbytes, lies in product(sizes, (together, apart, distant)):
            scramble(module)
            untouched = state(module)
            replay(recording, module, tensors, nbytes, lies)
            found = state(module)
            for gap in recording.layout.gaps:
                name = recording.layout.targets[gap.target].name
                kept = found[name] == untouched[name]
                found[name] = torch.where(kept, expected[name], found[name])
            assert same(expected, found) == []
    return recording
