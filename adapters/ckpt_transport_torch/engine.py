"""Loads new weights into a plain PyTorch module by the names of its tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from operator import is_not

import numpy as np
import torch

from ckpt_transport import CheckpointError, LoadedBucket, PlanMismatchError, UnwritableError
from ckpt_transport.spi import (
    DoubleBuffer,
    Fence,
    Fingerprint,
    HostRanges,
    Landing,
    Scratch,
    ServedElements,
    ShadowNeeds,
    StagingArea,
    StridedBytes,
    TensorSnapshot,
    TensorSpec,
    copy_bytes,
    copy_views,
    dtypes,
    has_copy_tables,
    not_plain,
    reads_in_place,
    refuse_unwritable,
    unwritable,
)
from ckpt_transport_torch.landings import BucketLanding, Landings, rows_of
from ckpt_transport_torch.module_engine import ModuleEngine
from ckpt_transport_torch.name_tables import NameTables
from ckpt_transport_torch.states import state_depends_on
from ckpt_transport_torch.writes import count_writes

PLAIN_KINDS = frozenset({torch.Tensor, torch.nn.Parameter})
MADE_ANEW = "state_dict() makes it anew each time, so what is written to it does not reach the module: pass a loader"


class TorchEngine(ModuleEngine):
    """Loads tensors into the parameters and persistent buffers of a module, by their names in its ``state_dict``.

    What else a module keeps there, by ``get_extra_state``, stays as it is.

    Args:
        module: what is updated. Its tensors may be replaced by others between updates, and must not during one.
        group, label: see :class:`~ckpt_transport.Engine`.

    Raises:
        UnwritableError: a tensor cannot be written; names it, why, and the cure.
    """

    def __init__(self, module: torch.nn.Module, group: str = "", label: str = "") -> None:
        super().__init__(module, group, label)
        self._expected: tuple[TensorSpec, ...] = ()
        self._ties: tuple[frozenset[str], ...] = ()
        self._on_one_device = False
        self._double_buffer, self._tables = DoubleBuffer(self.device), NameTables(self.device)
        self._landings, self._scratch = Landings(), Scratch()
        self._snapshot: TensorSnapshot | None = None
        self._fingerprint: Fingerprint | None = None
        self._needs: ShadowNeeds | None = None
        self._copies: StridedBytes | None = None
        self._ranges: HostRanges | None = None
        self._staged_for: tuple[StagingArea, Fingerprint] | None = None
        """A staging area, and where the tensors lie that it was found to be for."""
        self._stood_still = False
        """Forward passes stood still when tensors were looked at, and nothing was done since then."""
        self._has_looked = self._has_counted = False
        """:meth:`meanwhile` has found the tensors in place, and has told torch that they get other values."""
        self._addresses: Sequence[int] = ()
        self._raw: dict[str, torch.Tensor] = {}
        self.begin()
        self._release()

    def begin(self) -> None:
        self._release()
        self._look_up()

    def expects(self) -> tuple[TensorSpec, ...] | None:
        return self._expected

    def ties(self) -> tuple[frozenset[str], ...]:
        return self._ties

    def foresee(self, buckets: Iterable[LoadedBucket]) -> None:
        """See :meth:`Engine.foresee`. The tables are made by which a GPU copies each bucket."""
        if self._is_tabled:
            for bucket in buckets:
                self._tables.foresee(bucket, lambda: self._written)

    def confirm(self) -> None:
        self._stood_still = True
        if self._snapshot is not None and not self._snapshot.moved():
            return
        described = self._described()
        self._look_up()
        if described != self._described():
            raise PlanMismatchError(
                f"{self.label} has changed since it said what it needs of a new version; update it again"
            )

    def load(self, pieces: LoadedBucket) -> Fence | None:
        if self._snapshot is None:
            self.confirm()
        assert self._snapshot is not None
        if self._is_tabled:
            self._load_by_table(pieces)
        elif len(pieces.runs) == 1 and pieces.raw.is_cpu and not self.unread:
            self._landing_of(pieces).copy(pieces.raw, self._addresses, self._run_of_bytes)
        else:
            self._load_each(pieces)
        return self._reads_end()

    def _load_by_table(self, pieces: LoadedBucket) -> None:
        runs = pieces.runs
        near = runs if reads_in_place(self.device, runs) else self._double_buffer.stage(runs)
        with torch.inference_mode():
            self._tables.copy(pieces.brought(near), lambda: self._written)

    def _load_each(self, pieces: LoadedBucket) -> None:
        if self.enqueues:
            pieces = pieces.brought(self._double_buffer.stage(pieces.runs))
        with torch.inference_mode():
            for place in pieces.places():
                spec, given, raw = place.spec, pieces.bytes_of(place), self._bytes_of(place.spec.name)
                if raw is None:
                    self._written[spec.name].copy_(dtypes.as_tensor(given, spec.dtype, spec.shape))
                elif place.runs > 1:
                    self._load_rows(rows_of(raw, place), given.view(place.runs, place.nbytes))
                elif raw.is_cuda:
                    raw[place.start : place.start + place.nbytes].copy_(given, non_blocking=True)
                else:
                    copy_bytes(raw[place.start : place.start + place.nbytes], given)

    def _load_rows(self, rows: torch.Tensor, given: torch.Tensor) -> None:
        if rows.is_cpu and given.is_cpu:
            copy_views([rows], [given])
        else:
            rows.copy_(given, non_blocking=True)

    def landing(self, pieces: LoadedBucket) -> Landing | None:
        if self._snapshot is None:
            self.confirm()
        if self.unread:
            return None
        return self._landing_of(pieces).landing(self._addresses, self._run_of_bytes, self._scratch)

    def landed(self, pieces: LoadedBucket) -> None:
        self._landing_of(pieces).landed(self._run_of_bytes)

    def _landing_of(self, pieces: LoadedBucket) -> BucketLanding:
        assert self._snapshot is not None, "an update has begun"
        return self._landings.of(pieces, self._snapshot.fingerprint.names)

    def stage(self) -> None:
        super().stage()
        self.enqueues = self.enqueues and self._stages_on(self.device)
        assert self._area is not None, "it was made"
        self._bind(self._area.addresses)

    def exchange(self) -> None:
        """See :meth:`Engine.exchange`. Tensors were looked at when forward passes stood still, or are now."""
        assert self._snapshot is not None, "an update has begun"
        has_looked, self._stood_still = self._stood_still, False
        if self._area is not None and self._is_for_now(self._area) and (has_looked or self._snapshot.stays()):
            self._area.exchange_here()
        else:
            super().exchange()

    def _is_for_now(self, area: StagingArea) -> bool:
        assert self._snapshot is not None, "an update has begun"
        now = area, self._snapshot.fingerprint
        if self._staged_for is None or any(map(is_not, self._staged_for, now)):
            if not super()._is_for_now(area):
                return False
            self._staged_for = now
        return True

    def drop_staged(self) -> None:
        super().drop_staged()
        self._staged_for = None

    def served_elements(self) -> ServedElements:
        is_idle = self._snapshot is None
        try:
            if self._snapshot is None or self._snapshot.moved():
                self._look_up()
            served = self._served()
            if self._copies is None:
                self._copies = _by_name(self._expected, served)
            assert self._snapshot is not None, "it was looked up"
            return self._apart(ServedElements(self._expected, served, self._copies, self._snapshot.look))
        finally:
            if is_idle:
                self._release()

    def _served(self) -> Mapping[str, torch.Tensor]:
        assert self._snapshot is not None, "an update has begun"
        return self._snapshot.memory

    def _needs_of(self, tensors: Mapping[str, torch.Tensor]) -> ShadowNeeds:
        """They are always the same tensors, until these have moved."""
        if self._needs is None:
            self._needs = ShadowNeeds.of(tensors)
        return self._needs

    def meanwhile(self) -> None:
        """Look at the tensors in place of :meth:`finish`. What changes from then on, :meth:`certify` finds."""
        if self._snapshot is None:
            return
        with suppress(RuntimeError):  # of one that has no memory any more: finish() says so
            self._has_looked = self._snapshot.stays()
        if not (self._staging or self._has_counted):
            count_writes(self._snapshot.each)
            self._has_counted = True

    def finish(self) -> None:
        """Parameters were written in place; nothing else depends on them."""
        self._double_buffer.close()
        self._tables.forget_unused()
        self._landings.forget_unused()
        if not self._has_looked:
            self._check_places()

    def certify(self) -> None:
        """See :meth:`Engine.certify`. In which form tensors lie, :meth:`confirm` looks at."""
        self._check_places()
        if self._snapshot is not None:
            if not self._has_counted:
                count_writes(self._snapshot.each)
            torch.clear_autocast_cache()

    def _check_places(self) -> None:
        if self._snapshot is not None and not self._snapshot.stays():
            self._snapshot.check()

    def _release(self) -> None:
        super()._release()
        self.enqueues = self._on_one_device
        self._double_buffer.close()
        self._snapshot, self._raw, self._addresses, self._stood_still = None, {}, (), False
        self._has_looked = self._has_counted = False

    @property
    def _is_tabled(self) -> bool:
        return self.enqueues and has_copy_tables(self.device)

    def _bind(self, addresses: Sequence[int]) -> None:
        """Load into the tensors at these addresses from now on: those of :attr:`_written`."""
        assert self._snapshot is not None, "an update has begun"
        self._addresses, self._raw = addresses, {}
        if self._is_tabled:
            self._tables.bind(self._snapshot.fingerprint.names, addresses)

    def _bytes_of(self, name: str) -> torch.Tensor | None:
        """The bytes of a tensor that is loaded into; None where its memory does not hold just its elements."""
        raw = self._raw.get(name)
        if raw is None:
            tensor = self._written[name]
            if self.whole_tensors and not _is_a_run_of_bytes(tensor):
                return None
            raw = self._raw[name] = tensor.view(-1).view(torch.uint8)
        return raw

    def _run_of_bytes(self, name: str) -> torch.Tensor:
        raw = self._bytes_of(name)
        assert raw is not None, "only then it is read straight to there"
        return raw

    def _described(self) -> tuple[object, ...]:
        return self._expected, self._ties, self.whole_tensors, self.device

    def _look_up(self) -> None:
        """Look the tensors up. Where they are not those of the last time, describe them anew."""
        snapshot = TensorSnapshot(self._module, self._look, self._fingerprint, _refuse_not_plain, state_depends_on)
        if snapshot.fingerprint is self._fingerprint:
            if self._ranges is not None:
                refuse_unwritable(self._ranges.read_only())
        else:
            refuse_unwritable(unwritable(snapshot.memory))
            refuse_unwritable(dict.fromkeys(snapshot.moved(), MADE_ANEW))
            self._describe(snapshot.memory)
            self._fingerprint, self._copies, self._needs = snapshot.fingerprint, None, None
            is_on_gpu = self.device.type == "cuda" and self._on_one_device
            self._ranges = None if is_on_gpu else HostRanges.of(snapshot.memory)
        self._snapshot = snapshot
        self._bind(snapshot.fingerprint.addresses)

    def _look(self) -> Mapping[str, torch.Tensor]:
        state = self._module.state_dict(keep_vars=True)
        tensors: Mapping[str, torch.Tensor] = state
        if not PLAIN_KINDS.issuperset(map(type, state.values())):
            tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
            _refuse_not_plain(tensors)
        return tensors

    def _describe(self, memory: Mapping[str, torch.Tensor]) -> None:
        expected = tuple(_spec(name, tensor) for name, tensor in memory.items())
        if expected != self._expected:
            self._expected = expected
        self._ties = _ties(memory)
        self.whole_tensors = len(_runs_of_bytes(memory)) < len(memory)
        self._find_devices(memory)
        self.enqueues = self._on_one_device = all(tensor.device == self.device for tensor in memory.values())
        self.unread = self._why_unread()
        self._double_buffer, self._tables = DoubleBuffer(self.device), NameTables(self.device)
        self._landings = Landings()

    def _why_unread(self) -> str:
        if self.device.type != "cpu":
            return "its tensors are on a GPU"
        return "a tensor of its is not contiguous" if self.whole_tensors else ""


def _refuse_not_plain(tensors: Mapping[str, torch.Tensor]) -> None:
    refuse_unwritable(not_plain(tensors))


def _by_name(specs: Sequence[TensorSpec], served: Mapping[str, torch.Tensor]) -> StridedBytes:
    """How a version gets into the tensors of its names; tied ones are one."""
    places: dict[tuple[int, int], int] = {}
    targets = [places.setdefault((each.data_ptr(), each.nbytes), at) for at, each in enumerate(served.values())]
    numbers, nothing = np.arange(len(specs)), np.zeros(len(specs), np.int64)
    sizes = np.array([spec.nbytes for spec in specs], np.int64)
    return StridedBytes.contiguous(numbers, np.array(targets, np.int64), nothing, nothing, sizes)


def _runs_of_bytes(memory: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Those whose memory holds their elements, one after the other."""
    kind, tensors = torch.Tensor, memory.values()
    if (
        all(map(kind.is_contiguous, tensors))
        and not any(map(kind.is_conj, tensors))
        and not any(map(kind.is_neg, tensors))
    ):
        return memory
    return {name: tensor for name, tensor in memory.items() if _is_a_run_of_bytes(tensor)}


def _is_a_run_of_bytes(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    try:
        return TensorSpec(name, dtypes.name_of(tensor.dtype), dtypes.shape_of(tensor))
    except CheckpointError as error:
        raise UnwritableError(f"{name} cannot be updated: {error}") from error


def _ties(memory: Mapping[str, torch.Tensor]) -> tuple[frozenset[str], ...]:
    """Names that share memory."""
    sharing: defaultdict[tuple[int, torch.Size, tuple[int, ...]], set[str]] = defaultdict(set)
    for name, tensor in memory.items():
        if tensor.numel():
            sharing[tensor.data_ptr(), tensor.shape, tensor.stride()].add(name)
    return tuple(frozenset(names) for names in sharing.values() if len(names) > 1)
