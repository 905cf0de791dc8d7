"""Loading a plain module: by replay where that is proved to be the same, else by its loader."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ckpt_transport.errors import RecordingError
from ckpt_transport.memory import read_only, unwritable, why_not_plain
from ckpt_transport.planning import Share, TensorSpec, digest_of
from ckpt_transport.replay.bindings import named_tensors
from ckpt_transport.replay.bound import Bound, refuse_unwritable
from ckpt_transport.replay.former import Former
from ckpt_transport.replay.needs import needs
from ckpt_transport.replay.record import Load, LoaderFailedError, Recording, RefusedWriteError, key_of, record
from ckpt_transport.replay.rehearsal import Rehearsal
from ckpt_transport.replay.replay import Replay
from ckpt_transport.replay.script import Part, Script, Scripts

logger = logging.getLogger(__name__)

LOOK_UP = "look tensors up when the loader is called, as by module.get_parameter(name)"
LEFT = f"the loader writes to memory that it had before and has no more: {LOOK_UP}"
ELSEWHERE = f"the loader writes to other memory instead, which is not the module's: {LOOK_UP}"


class Piece(Protocol):
    """One whole tensor."""

    @property
    def spec(self) -> TensorSpec: ...

    def tensor(self) -> torch.Tensor: ...


class Bucket(Protocol):
    """What arrives at once; see :class:`~ckpt_transport.LoadedBucket`."""

    @property
    def key(self) -> object: ...

    @property
    def raw(self) -> torch.Tensor: ...

    @property
    def lasting(self) -> bool: ...

    def places(self) -> Sequence[tuple[TensorSpec, int, int, int]]: ...

    def __iter__(self) -> Iterator[Piece]: ...


@dataclass
class _Known:
    """A recording, what it was made for, and what came of it.

    Attributes:
        refusal: why the loader must load; empty when the replay may.
        verified: the replay was found to leave what the loader leaves.
        recorded: seconds that recording took.
        loading: seconds that the loader takes; 0 when it was not measured.
    """

    specs: tuple[TensorSpec, ...]
    bound: tuple[object, ...]
    recording: Recording | None = None
    refusal: str = ""
    verified: bool = False
    recorded: float = 0.0
    loading: float = 0.0
    scripts: Scripts | None = None
    share: Share | None = None
    buckets: dict[object, Script] = field(default_factory=dict)

    def is_for(self, specs: tuple[TensorSpec, ...]) -> bool:
        """Whether it is about these tensors, in whatever order they come."""
        return self.specs == specs or digest_of(self.specs) == digest_of(specs)


class RecordedLoading:
    """Brings versions into a module.

    The first version is loaded by the loader, recorded before, and replayed bucket by bucket over what the loader left:
    if one byte differs, the loader's stays, and replays end. Later versions are only replayed, unless ``always``. When
    the module or what a version brings has changed, all that begins again.

    The module's tensors are looked up when an update begins, and again before the first byte. They must be the same
    ones until it is over.

    Args:
        module: what is loaded.
        load: its loader. It is given whole tensors, and must not need those of another bucket.
        always: compare on every update.
        context: see :func:`key_of`.

    Attributes:
        told: what was done, in words.
    """

    def __init__(
        self, module: torch.nn.Module, load: Load, *, always: bool = False, context: Sequence[str] = ()
    ) -> None:
        self.told = ""
        self._module, self._load, self._always, self._context = module, load, always, tuple(context)
        self._specs: tuple[TensorSpec, ...] | None = None
        self._share: Share | None = None
        self._copied = 0
        self._known: _Known | None = None
        self._replay: Replay | None = None
        self._compares = self._begun = False
        self._used: set[object] = set()
        self._loading = self._replaying = 0.0
        self._bound: Bound | None = None
        self._inference = False
        self._former = Former()
        self._rehearsal = Rehearsal()

    @property
    def spoiled(self) -> bool:
        """Whether recording the loader has changed what the module holds, or may be doing so just now."""
        return self._rehearsal.spoiled

    def begin(self) -> Mapping[str, torch.Tensor]:
        """Look up the module's tensors, because an update begins, and return them.

        Raises:
            UnwritableError: one that the loader writes cannot be written any more; names it.
        """
        self.release()
        self._rehearsal.spoiled = False
        bound, known = self._here(), self._known
        if known is not None and known.recording is not None and known.bound == bound.stamp:
            refuse_unwritable(read_only(_written(known.recording, bound)))
        return bound.memory

    def confirm(self) -> None:
        """Lay hold of the module's tensors, and record the loader where that is to be done. Nothing was loaded yet.

        Raises:
            UnwritableError: the loader writes a tensor that cannot be written, or misses one; names it.
            RecordingError: the module has changed, and only a share of the version comes, or the loader fails on it.
        """
        if not self._begun:
            with torch.no_grad():
                self._begin()

    def share(self) -> Share | None:
        """What the next version must bring; None for everything."""
        known = self._known
        if known is None or not known.verified or self._always or not self._holds(known):
            return None
        return known.share

    def prepare(self, specs: Iterable[TensorSpec], share: Share | None = None) -> None:
        """What the next version has, and what comes of it."""
        self._specs, self._share = tuple(specs), share

    def load(self, bucket: Bucket) -> None:
        """Bring one bucket in."""
        self.confirm()
        with self._writing():
            if self._replay is None:
                self._by_loader(bucket)
                return
            assert self._known is not None
            script = self._script(self._known, bucket)
            if script is None:
                self._check_all_comes()
                self._give_up("a bucket brings a tensor that the version was not said to have")
                self._by_loader(bucket)
            elif self._compares:
                self._compare(self._replay, script, bucket)
            else:
                began = time.perf_counter()
                written = self._replay.run(script, bucket.raw, lasting=bucket.lasting)
                self._copied += sum(written.copied.values())
                self._replaying += time.perf_counter() - began

    def finish(self) -> None:
        """All of a version is in.

        Raises:
            RecordingError: something waits for a tensor that did not come.
            UpdateError: the module has other tensors than those that were loaded; names them.
        """
        known, replay, began = self._known, self._replay, self._begun
        self._begun, self._replay = False, None
        if not began:
            return
        with self._writing():
            self._finish(known, replay)
        self._check_bound(known)

    def certify(self) -> None:
        """
        Raises:
            UpdateError: the module has other tensors now than when all was in; names them.
        """
        if self._bound is not None:
            self._bound.check()

    def release(self) -> None:
        """The update is over: keep no tensor of the module."""
        self._begun, self._replay, self._bound = False, None, None

    def abandon(self) -> None:
        """The update has failed; the next one does not rely on anything."""
        self.release()
        self._known = None

    def _writing(self) -> AbstractContextManager[object]:
        """How torch lets the module's tensors be written: those made in inference mode only in it."""
        return torch.inference_mode() if self._inference else torch.no_grad()

    def _finish(self, known: _Known | None, replay: Replay | None) -> None:
        if replay is None or known is None:
            self.told = f"loaded by the loader in {self._loading:.3f} s" + (
                f": {known.refusal}" if known and known.refusal else ""
            )
            return
        replay.finish()
        assert known.recording is not None
        layout = known.recording.layout
        expected = sum(copy.nbytes for copy in layout.copies)
        if not self._compares and self._copied != expected:
            raise RecordingError(f"{expected - self._copied:,} bytes did not come, which the loader needs")
        if self._compares and (misfits := replay.misfits()):
            self._give_up(f"the loader fills {misfits[0]} with another number than when it was recorded")
            self.told = f"loaded by the loader in {self._loading:.3f} s: {known.refusal}"
            return
        replay.fill(range(len(layout.targets)))
        for key in known.buckets.keys() - self._used:
            del known.buckets[key]
        moves = sum(len(script.moves) for script in known.buckets.values())
        what = f"{len(layout.copies)} copies in {moves}" + (
            f", {len(layout.programs)} programs" if layout.programs else ""
        )
        if self._compares:
            known.verified, known.loading, known.share = True, self._loading, needs(layout)
            self.told = (
                f"recorded in {known.recorded:.3f} s ({what}), loaded by the loader in {self._loading:.3f} s, "
                f"replayed in {self._replaying:.3f} s and found to be the same"
            )
        else:
            self.told = f"replayed in {self._replaying:.3f} s ({what}); the loader took {known.loading:.3f} s"

    # -- which way ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._begun = True
        self._loading = self._replaying = 0.0
        self._copied = 0
        self._used = set()
        bound = self._here()
        self._inference = any(tensor.is_inference() for tensor in bound.memory.values())
        if self._specs is None:
            return
        known = self._known
        if known is None or not known.is_for(self._specs) or not self._holds(known):
            self._check_all_comes()
            known = self._known = self._recorded(_Known(self._specs, bound.stamp), bound)
        if known.refusal or known.recording is None:
            return
        targets = known.recording.layout.targets
        self._compares = self._always or not known.verified
        known.scripts = known.scripts or Scripts(known.recording.layout)
        self._replay = Replay(
            known.scripts, {number: bound.memory[target.name] for number, target in enumerate(targets)}
        )

    def _holds(self, known: _Known) -> bool:
        """Whether the module is as it was when this was recorded."""
        return known.bound == self._here().stamp and (known.recording is None or known.recording.holds)

    def _here(self) -> Bound:
        """The module's tensors now."""
        if self._bound is None or self._bound.moved():
            self._bound = Bound(self._module, self._look)
            self._former.remember(self._bound.memory)
        return self._bound

    def _look(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in named_tensors(self._module) if not why_not_plain(tensor)}

    def _check_bound(self, known: _Known | None) -> None:
        """The module has the tensors that were loaded, but for those that the loader itself has replaced."""
        assert self._bound is not None
        moved = self._bound.moved()
        if known is not None and known.recording is not None and not known.recording.rebound.issuperset(moved):
            self._bound.check()
        self._here()

    def _check_all_comes(self) -> None:
        if self._share is not None:
            raise RecordingError("the module has changed, and only a share of the version comes")

    def _recorded(self, known: _Known, bound: Bound) -> _Known:
        began = time.perf_counter()
        try:
            key = key_of(self._module, known.specs, *self._context)
            with self._rehearsal.watching(bound.memory.values()):
                known.recording = record(self._module, self._load, known.specs, key)
        except RefusedWriteError as error:
            refuse_unwritable({error.name: f"{error}; copy into what its class allows, or into its .data"})
        except LoaderFailedError as error:
            if self._known is not None and self._known.recording is not None:
                raise RecordingError(f"the loader does not work with the module as it is now; {error}") from error
            known.refusal = str(error)
        except RecordingError as error:
            known.refusal = str(error)
        else:
            refuse_unwritable(unwritable(_written(known.recording, bound)))
            refuse_unwritable(self._missed(known.recording))
            known.refusal = _doubt(known.recording)
        known.recorded = time.perf_counter() - began
        if known.refusal:
            logger.warning("weights are loaded by the loader and not replayed: %s", known.refusal)
        return known

    def _missed(self, recording: Recording) -> dict[str, str]:
        """Tensors of the module that the loader takes itself to write, and does not: it writes memory of another."""
        targets = recording.layout.targets
        missed: dict[str, str] = {}
        own = {name: n for n, target in enumerate(targets) for name in (target.name, *target.also)}
        for memory, sources in recording.astray:
            if former := self._former.name_of(memory):
                missed[former] = LEFT
            for name in (recording.layout.sources[source].name for source in sources):
                if name in own and own[name] not in recording.written:
                    missed.setdefault(name, ELSEWHERE)
        return missed

    def _give_up(self, reason: str) -> None:
        assert self._known is not None
        self._known.refusal, self._replay = reason, None
        logger.warning("weights are loaded by the loader and not replayed any more: %s", reason)

    # -- the ways -----------------------------------------------------------------------------------------------------

    def _by_loader(self, bucket: Bucket) -> None:
        began = time.perf_counter()
        self._load((piece.spec.name, piece.tensor()) for piece in bucket)
        self._loading += time.perf_counter() - began

    def _script(self, known: _Known, bucket: Bucket) -> Script | None:
        self._used.add(bucket.key)
        script = known.buckets.get(bucket.key)
        if script is None:
            assert known.scripts is not None
            parts: list[Part] = []
            for place in bucket.places():
                part = known.scripts.part(*place)
                if part is None:
                    return None
                parts.append(part)
            script = known.buckets[bucket.key] = known.scripts.make(parts)
        return script

    def _compare(self, replay: Replay, script: Script, bucket: Bucket) -> None:
        """Load by the loader, spoil what the replay should write, replay, and see that it is as it was."""
        self._by_loader(bucket)
        places = replay.writes(script, bucket.raw)
        expected = [place.clone() for place in places]
        for place in places:
            place.bitwise_not_()
        began = time.perf_counter()
        replay.run(script, bucket.raw, lasting=bucket.lasting)
        self._replaying += time.perf_counter() - began
        wrong = [n for n, place in enumerate(places) if not torch.equal(place, expected[n])]
        if wrong:
            for place, value in zip(places, expected, strict=True):
                place.copy_(value)
            self._give_up("the replay did not leave the bytes that the loader leaves")


def _written(recording: Recording, bound: Bound) -> dict[str, torch.Tensor]:
    """The tensors that the loader writes, by name."""
    names = {recording.layout.targets[number].name for number in recording.written} - recording.rebound
    return {name: tensor for name, tensor in bound.memory.items() if name in names}


def _doubt(recording: Recording) -> str:
    """Why a recording is not to be relied on; empty when it is.

    A loader may need all that it is given to know what it is doing, so it does everything or nothing. A tensor that it
    was not seen to use is one that it leaves out, unless something was left unloaded: then it may have been used in a
    way that cannot be seen, as through NumPy.
    """
    layout = recording.layout
    if layout.refused:
        return layout.why()
    empty = [layout.targets[gap.target].name for gap in layout.gaps if layout.targets[gap.target].parameter]
    if empty and layout.unread:
        return f"the loader was not seen to use {layout.sources[layout.unread[0]].name}, nor to load all of {empty[0]}"
    return ""
