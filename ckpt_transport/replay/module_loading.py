"""Loads a plain module: by replay where that is proved to be the same, else by its loader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn import Parameter

from ckpt_transport.engine import ServedElements, StagedTensors, StagingArea, why_not_apart
from ckpt_transport.errors import DeltaRefusedError, RecordingError
from ckpt_transport.memory import HostRanges, unwritable, usable_cores
from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.planning import Share, TensorSpec
from ckpt_transport.replay.bindings import Fingerprint
from ckpt_transport.replay.loading import LoadPass, RecordedLoader, RecordedLoading, logger
from ckpt_transport.replay.memory_map import storage_key, whole_memory
from ckpt_transport.replay.module_passes import ModuleComparedPass, ModuleLoaderPass, ModuleReplayPass
from ckpt_transport.replay.past_memory import PastMemory
from ckpt_transport.replay.record import Loader, LoaderFailedError, Recording, RefusedWriteError, record
from ckpt_transport.replay.recorder import Recorder
from ckpt_transport.replay.replayed_tensors import ReplayedTensors
from ckpt_transport.replay.serving_recorder import SeenByPassesError, ServingRecorder
from ckpt_transport.replay.tensor_snapshot import TensorSnapshot, refuse_unwritable

NOT_YET = "its loader was not replayed yet, so the next version is loaded in place"
LOOK_UP = "look tensors up when the loader is called, as by module.get_parameter(name)"
LEFT = f"the loader writes to memory that it had before and has no more: {LOOK_UP}"
ELSEWHERE = f"the loader writes to other memory instead, which is not the module's: {LOOK_UP}"


class ModuleLoading(RecordedLoading[RecordedLoader]):
    """Brings versions into a plain module.

    A loader may need all that it is given to know what it is doing, so all of it is replayed or nothing.

    The module's tensors are looked up when an update begins, and again before the first byte. They must be the same
    ones until it is over.

    Args:
        module: what is loaded.
        loader: its loader. It is given whole tensors, and must not need those of another bucket.
        label, verify_always: see :class:`RecordedLoading`.

    Attributes:
        spoiled: recording the loader has changed what the module holds, or may be doing so just now.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loader: Loader,
        label: str = "the module",
        *,
        verify_always: bool = False,
    ) -> None:
        super().__init__(label, verify_always=verify_always)
        self._module, self._loader = module, loader
        self._snapshot: TensorSnapshot | None = None
        self._ranges: tuple[Recording, Fingerprint, HostRanges] | None = None
        self._past_memory = PastMemory()
        self._staged: Mapping[str, torch.Tensor] | None = None
        self.spoiled = False

    def begin(self) -> Mapping[str, torch.Tensor]:
        """Look up the module's tensors, because an update begins, and return them.

        Raises:
            UnwritableError: one that the loader writes cannot be written any more; names it.
        """
        self.release()
        self.spoiled = False
        snapshot, attempt = self._snapshot_now(), self._attempt
        if attempt is not None and attempt.recorded is not None and attempt.fingerprint == snapshot.fingerprint:
            refuse_unwritable(self._ranges_of(attempt.recorded.recording, snapshot).read_only())
        return snapshot.memory

    def _ranges_of(self, recording: Recording, snapshot: TensorSnapshot) -> HostRanges:
        """Which memory the loader writes. Found once, until the tensors have moved."""
        known = self._ranges
        if known is None or known[0] is not recording or known[1] is not snapshot.fingerprint:
            found = HostRanges.of(_written(recording, snapshot))
            known = self._ranges = recording, snapshot.fingerprint, found
        return known[2]

    def prepare(self, specs: Iterable[TensorSpec], share: Share | None = None) -> None:
        """See :meth:`RecordedLoading.prepare`. The loader is recorded now, unless forward passes could see that.

        Raises: as :meth:`start`.
        """
        super().prepare(specs, share)
        assert self._specs is not None
        try:
            with torch.no_grad():
                self._attempted(self._specs, self._record_while_serving)
        except SeenByPassesError as seen:
            logger.info("%s: the loader %s, so it is recorded while no forward pass runs", self.label, seen)

    def why_not_staged(self) -> str:
        """Why the next version cannot be loaded into other memory than the module's; empty when it can."""
        recorded = self.recorded
        if self._attempt is None:
            return NOT_YET
        if recorded is None or recorded.refusal:
            why = self._attempt.refusal if recorded is None else recorded.refusal
            return f"its loader has to load, which it does in place: {why}"
        if self._verify_always:
            return "each replay is compared with the loader, which loads in place"
        if not recorded.verified or not self._is_current():
            return NOT_YET
        return "its loader replaces tensors of the module" if recorded.recording.rebound else ""

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The module's tensors by name, as this update has found them; none between updates."""
        return {} if self._snapshot is None else self._snapshot.tensors

    def written(self) -> Mapping[str, torch.Tensor]:
        """The tensors of the module that a version is written to, by name; the loader was recorded."""
        assert self.recorded is not None
        return _written(self.recorded.recording, self._snapshot_now())

    def served_elements(self) -> ServedElements:
        """Where the bytes of a version are in the module.

        Raises:
            DeltaRefusedError: single elements cannot be followed, or a module cannot be staged beside them; says why.
        """
        is_idle = self._snapshot is None
        try:
            recorded, why = self.recorded, self.why_not_staged()
            if recorded is None or why:
                raise DeltaRefusedError(why)
            divided = recorded.divided
            if divided.refusal:
                raise DeltaRefusedError(divided.refusal)
            snapshot, whole = self._snapshot_now(), self._taken_whole(recorded)
            if why := why_not_apart(whole):
                raise DeltaRefusedError(why)
            first = {name: snapshot.memory[name] for name in divided.elements.targets}
            others = {name: each for name, each in self.written().items() if name not in whole}
            return ServedElements(
                recorded.layout.sources,
                {**first, **others},
                divided.elements.copies,
                snapshot.look,
                divided.modules,
                sum(each.nbytes for each in whole.values()),
                whole,
            )
        finally:
            if is_idle:
                self._snapshot = None

    def stage_whole(self) -> StagedTensors:
        """See :meth:`~ckpt_transport.Engine.stage_whole`; :meth:`served_elements` has named modules."""
        recorded = self.recorded
        assert recorded is not None, "it was recorded"
        area = StagingArea(self._taken_whole(recorded))
        load = ModuleReplayPass(self._not_staged, area.tensors, recorded.whole_part, None)
        return ReplayedTensors(load, area.nbytes, lambda: area.exchange(self._taken_whole(recorded)), area.device)

    def _taken_whole(self, recorded: RecordedLoader) -> dict[str, torch.Tensor]:
        """The tensors of the module that are loaded with all of theirs in each update, by name."""
        names = recorded.divided.whole_targets
        return {name: each for name, each in self.written().items() if name in names}

    def stage(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load this version into other memory than the module's.

        Args:
            tensors: one for each of :meth:`written`. What the version does not bring is copied from the module now.
        """
        self._staged = tensors
        assert self.recorded is not None
        layout, served = self.recorded.layout, self.written()
        for name in {layout.targets[gap.target].name for gap in layout.gaps} & tensors.keys():
            tensors[name].copy_(served[name])

    def start(self) -> None:
        """See :meth:`RecordedLoading.start`.

        Raises:
            UnwritableError: the loader writes a tensor that cannot be written, or misses one; names it.
        """
        with torch.no_grad():
            super().start()

    def finish(self) -> None:
        """See :meth:`RecordedLoading.finish`.

        Raises:
            UpdateError: the module has other tensors than those that were loaded; names them.
        """
        if self.started:
            super().finish()
            self._check_snapshot()

    def certify(self) -> None:
        """Look at the module's tensors once more, when all is in.

        Raises:
            UpdateError: they are others now; names them.
        """
        if self._snapshot is not None:
            self._snapshot.check()

    def release(self) -> None:
        """The update is over: keep no tensor of the module."""
        super().release()
        self._snapshot = self._staged = None

    # -- what a plain module is ---------------------------------------------------------------------------------------

    def record(self, specs: tuple[TensorSpec, ...]) -> RecordedLoader:
        return self._record_by(Recorder, specs, [*self._snapshot_now().memory.values()])

    def _record_while_serving(self, specs: tuple[TensorSpec, ...]) -> RecordedLoader:
        """Record the loader; forward passes may write buffers meanwhile, as they do to caches.

        Raises:
            SeenByPassesError: it can only be recorded while no forward pass runs.
        """
        snapshot = self._snapshot_now()
        still = [snapshot.memory[name] for name, each in snapshot.tensors.items() if isinstance(each, Parameter)]
        return self._record_by(ServingRecorder, specs, still)

    def _record_by(
        self, observer: type[Recorder], specs: tuple[TensorSpec, ...], still: Sequence[torch.Tensor]
    ) -> RecordedLoader:
        """
        Args:
            observer: what watches the loader.
            specs: what it is given.
            still: memory that nobody else writes meanwhile.
        """
        snapshot = self._snapshot_now()
        before = _digests(still)
        self.spoiled = True
        try:
            recording = record(self._module, self._loader, specs, observer)
        except RefusedWriteError as error:
            refuse_unwritable({error.name: f"{error}; copy into what its class allows, or into its .data"})
            raise
        finally:
            self.spoiled = _digests(still) != before
        refuse_unwritable(unwritable(_written(recording, snapshot)))
        refuse_unwritable(self._missed(recording))
        return RecordedLoader(recording, _doubt(recording))

    def fingerprint(self) -> object:
        return self._snapshot_now().fingerprint

    def refusal(self, error: RecordingError) -> str:
        if isinstance(error, LoaderFailedError) and self.recorded is not None:
            raise RecordingError(f"the loader does not work with the module as it is now; {error}") from error
        return super().refusal(error)

    def by_loader(self, refusal: str) -> LoadPass:
        self._check_in_place()
        return ModuleLoaderPass(self._loader, self._snapshot_now().memory, refusal)

    def compared(self, recorded: RecordedLoader) -> LoadPass:
        self._check_in_place()
        return ModuleComparedPass(self._loader, self._snapshot_now().memory, recorded, self._coming)

    def replayed(self, recorded: RecordedLoader) -> LoadPass:
        if self._staged is not None:
            return ModuleReplayPass(self._not_staged, self._staged, recorded, self._coming)
        return ModuleReplayPass(self._loader, self._snapshot_now().memory, recorded, self._coming)

    def _check_in_place(self) -> None:
        """
        Raises:
            RecordingError: the loader has to load, and the version is to be staged.
        """
        if self._staged is not None:
            raise RecordingError(f"{self.label} has changed since it said that it can stage a version; update it again")

    def _not_staged(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        raise RecordingError(f"{self.label} cannot stage this version: it brings other tensors than were recorded")

    # -- its tensors --------------------------------------------------------------------------------------------------

    def _snapshot_now(self) -> TensorSnapshot:
        """The module's tensors now."""
        if self._snapshot is None or self._snapshot.moved():
            known = None if self._attempt is None else self._attempt.fingerprint
            self._snapshot = TensorSnapshot(self._module, known=known if isinstance(known, Fingerprint) else None)
            self._past_memory.remember(self._snapshot.memory)
        return self._snapshot

    def _check_snapshot(self) -> None:
        """The module has the tensors that were loaded, but for those that the loader itself has replaced."""
        assert self._snapshot is not None
        moved = self._snapshot.moved()
        if self.recorded is not None and not self.recorded.recording.rebound.issuperset(moved):
            self._snapshot.check()
        self._snapshot_now()

    def _missed(self, recording: Recording) -> dict[str, str]:
        """Tensors of the module that the loader takes itself to write, and does not: it writes memory of another."""
        targets = recording.layout.targets
        missed: dict[str, str] = {}
        own = {name: n for n, target in enumerate(targets) for name in (target.name, *target.also)}
        for memory, sources in recording.stray_writes:
            if name := self._past_memory.name_of(memory):
                missed[name] = LEFT
            for name in (recording.layout.sources[source].name for source in sources):
                if name in own and own[name] not in recording.written:
                    missed.setdefault(name, ELSEWHERE)
        return missed


def _digests(tensors: Iterable[torch.Tensor]) -> list[bytes]:
    """The digest of each memory that these tensors are views of.

    The recorder keeps what a loader does through torch from the memory of a module that serves. It cannot keep what
    goes past torch, as through NumPy; that is noticed by comparing when it has happened.
    """
    storages = {storage_key(each): whole_memory(each) for each in tensors if not each.is_meta}
    with ThreadPoolExecutor(usable_cores(), "ckpt-transport-digest") as threads:
        return list(threads.map(lambda raw: as_bytes(digest([raw])), storages.values()))


def _written(recording: Recording, snapshot: TensorSnapshot) -> dict[str, torch.Tensor]:
    """The tensors that the loader writes, by name."""
    names = {recording.layout.targets[number].name for number in recording.written} - recording.rebound
    return {name: tensor for name, tensor in snapshot.memory.items() if name in names}


def _doubt(recording: Recording) -> str:
    """Why a recording is not to be relied on; empty when it is.

    A tensor that the loader was not seen to use is one that it leaves out, unless something was left unloaded: then it
    may have been used in a way that cannot be seen, as through NumPy.
    """
    layout = recording.layout
    if layout.refused:
        return layout.why()
    empty = [layout.targets[gap.target].name for gap in layout.gaps if layout.targets[gap.target].parameter]
    if empty and layout.unread:
        return f"the loader was not seen to use {layout.sources[layout.unread[0]].name}, nor to load all of {empty[0]}"
    return ""
