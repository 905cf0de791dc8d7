"""Measures deltas between two versions on one device against an engine that serves there: what each step takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

import torch

from benchmarks._held import Held
from benchmarks._row import Row
from benchmarks._versions import BUCKET_BYTES, Versions
from ckpt_transport import Engine, LoadedBucket
from ckpt_transport.checkpoint.pool import lay_out
from ckpt_transport.deltas import CopiedBytes, Differences, delta_manifest, find_differences, ranges_of
from ckpt_transport.engine import digest_of_served
from ckpt_transport.memory import Buffer, MemoryKind
from ckpt_transport.planning import Extent, PlacedBytes
from ckpt_transport.update.delta_engine import DeltaEngine
from ckpt_transport.update.element_maps import ElementMaps

BASE = "base"
PLENTY = 1 << 36
"""Bytes that an undo log may take."""


class Limits(NamedTuple):
    """What each step may take.

    Attributes:
        diff, held: milliseconds to find what differs, and to exchange it.
        sent: bytes, of all.
        target: of each step over its limit; empty where it is only reported.
    """

    diff: float
    held: float
    sent: float
    target: str = "<=1"


LIMITS = {0.01: Limits(40, 15, 0.022), 0.05: Limits(60, 25, 0.10)}
"""For each share of changed BF16 elements."""


class Served:
    """An engine that is brought versions, whole and by deltas.

    Args:
        engine: the engine.
        versions: what it is brought.

    Attributes:
        finishing: seconds that the last delta took from when all of it had come.
    """

    def __init__(self, engine: Engine, versions: Versions) -> None:
        self._engine, self._versions, self._maps = engine, versions, ElementMaps()
        self.held, self.finishing = Held(engine), 0.0

    def bring(self, of: Buffer) -> str:
        """Load all of a version; the digest of what is served then."""
        self._engine.begin()
        self._engine.prepare(self._versions.specs, None)
        for bucket in self._versions.buckets(of):
            fence = self._engine.load(bucket)
            if fence is not None:
                fence.synchronize()
        self._engine.finish()
        self._engine.certify()
        self._engine.resume()
        return self.digest()

    def digest(self) -> str:
        return digest_of_served(self._engine.served_elements().tensors)

    def stage(self, differences: Differences) -> DeltaEngine:
        """Take a delta up to where it would be exchanged."""
        raws = [each.encoded.raw for each in differences.found]
        offsets, nbytes = lay_out(raw.numel() for raw in raws)
        made = delta_manifest(
            self._versions.manifest(), BASE, differences, Extent(0, nbytes, MemoryKind.PRIVATE), offsets
        )
        self._engine.begin()
        taking = DeltaEngine(self.held.engine, BASE, self._maps)
        if reason := taking.can_stage(PLENTY):
            raise AssertionError(reason)
        taking.stage()
        specs = [placed.spec for placed in made.tensors]
        taking.take(made.deltas, specs)
        taking.prepare(specs, None)
        for number, (spec, raw) in enumerate(zip(specs, raws, strict=True)):
            taking.load(LoadedBucket(number, raw, partial(list, [PlacedBytes(spec, 0, 0, raw.numel())])))
        self.finishing = _seconds(taking.finish)
        return taking

    def prove(self, taking: DeltaEngine, left: str) -> None:
        """Begin an update that undoes or redoes what was exchanged last, up to where it would be exchanged again.

        Args:
            taking: what has exchanged it.
            left: the digest of what was served after that.
        """
        self._engine.begin()
        taking.digest_left = left
        taking.restore()


def measure(engine: Engine, versions: Versions, what: str, rounds: int, say: Callable[[str], None]) -> Iterator[Row]:
    """Rows for each share of changed elements.

    Args:
        engine: what serves.
        versions: what it is brought, on its device.
        what: the engine's name in rows.
        rounds: repetitions, of which the middle counts.
        say: told how far it is.
    """
    served = Served(engine, versions)
    say(f"{len(versions.specs):,} tensors, {versions.nbytes / 1e9:.2f} GB twice on {engine.device}")
    before = served.bring(versions.base)
    say(f"the first version is served: {engine.apply_summary}")
    for share, limits in LIMITS.items():
        versions.change(share)
        after = served.bring(versions.new)
        say(f"{share:.0%} changed and brought whole: {engine.apply_summary}")
        assert served.bring(versions.base) == before, "the base was not loaded as it was before"
        limits = limits._replace(target=limits.target if versions.wanted else "")
        yield from _measure(served, versions, (before, after), f"{what}, {share:.0%} changed", limits, rounds)
        say(f"{share:.0%} changed: measured")


def _measure(
    served: Served,
    versions: Versions,
    digests: tuple[str, str],
    what: str,
    limits: Limits,
    rounds: int,
) -> Iterator[Row]:
    ranges = ranges_of(versions.placed, BUCKET_BYTES)

    def diff() -> Differences:
        found = find_differences(ranges, [versions.base], [CopiedBytes(versions.new)], versions.nbytes, lambda: None)
        assert found is not None
        return found

    differences = diff()
    if versions.conversion:
        told = f"{versions.conversion * 1e3:.1f} ms, scales and elements"
        yield Row(f"FP8 of BF16, {what}", versions.conversion, "a second", "", told)
    seconds = [_seconds(diff) for _ in range(rounds)]
    yield _row(f"diff, {what}", seconds, limits.diff, limits.target, _counted(differences))
    moved = differences.nbytes / versions.nbytes
    yield Row(
        f"bytes on the wire, {what}",
        moved / limits.sent,
        f"{limits.sent} of all",
        limits.target,
        f"{moved:.4f} of all, {differences.nbytes / 1e9:.3f} GB in {len(differences.found)} carriers",
    )
    staging: list[float] = []
    _staged(served, differences, staging)
    taking = _staged(served, differences, staging)
    came = f"{served.finishing * 1e3:.1f} ms when all had come"
    detail = f"first {staging[0] * 1e3:.1f} ms, then {staging[-1] * 1e3:.1f} ms, of which {came}, while requests run"
    yield Row(f"decode and locate, {what}", staging[-1], "a second", "", detail)
    commits, undos, checks = [], [], []
    served.held.clear()
    for _ in range(rounds):
        commits.append(served.held.exchange(taking))
        assert served.digest() == digests[1], "what is served after the delta is not what a full version gives"
        checks.append(_seconds(lambda: served.prove(taking, digests[1])))
        undos.append(served.held.exchange(taking))
        assert served.digest() == digests[0], "what is served after the rollback is not the base"
        served.prove(taking, digests[0])
    told = f"{served.held}; {taking.apply_summary}, as when all had come"
    yield _row(f"held: commit with undo, {what}", commits, limits.held, limits.target, told)
    yield _row(f"held: rollback, {what}", undos, limits.held, limits.target, "byte for byte the base again")
    detail = f"{median(checks) * 1e3:.1f} ms, a digest of all that is served, while requests run"
    yield Row(f"proof before a rollback, {what}", median(checks), "a second", "", detail)


def _staged(served: Served, differences: Differences, taken: list[float]) -> DeltaEngine:
    """A delta that is ready to be exchanged; how many seconds that has taken is added to ``taken``."""
    _free()
    _synchronize()
    began = time.perf_counter()
    made = served.stage(differences)
    _synchronize()
    taken.append(time.perf_counter() - began)
    return made


def _counted(differences: Differences) -> str:
    return f"{differences.changed:,} of {differences.elements:,} elements"


def _row(name: str, seconds: Sequence[float], limit: float, target: str, detail: str) -> Row:
    taken = median(seconds) * 1e3
    told = f"{taken:.2f} ms, {min(seconds) * 1e3:.2f} at best; {detail}"
    return Row(name, taken / limit, f"{limit} ms", target, told)


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of a piece of work, the device's included."""
    _synchronize()
    began = time.perf_counter()
    made = work()
    _synchronize()
    taken = time.perf_counter() - began
    del made
    return taken


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
