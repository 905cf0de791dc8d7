"""Takes a version as what differs from the one that an engine serves, and exchanges the elements that do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import accumulate, chain

import numpy as np
import torch

from ckpt_transport.deltas import (
    Changes,
    DeviceExchange,
    ElementExchange,
    ElementMap,
    HostElements,
    HostExchange,
    each_once,
    each_once_on_host,
    exchange_each,
    go_apart,
    locate_on_device,
    locate_on_host,
    of_one_range,
    why_no_exchange,
)
from ckpt_transport.engine import (
    Engine,
    LoadedBucket,
    ServedElements,
    StagedTensors,
    digest_of_elements,
)
from ckpt_transport.errors import BudgetError, DeltaRefusedError, PlanMismatchError
from ckpt_transport.memory import Fence, copy_bytes, fence, uninterrupted
from ckpt_transport.planning import (
    Carrier,
    Delta,
    Share,
    TensorSpec,
    carried_share,
    modules_in_words,
    reasons_of,
)
from ckpt_transport.update.element_maps import ElementMaps
from ckpt_transport.update.whole_tensors import WholeTensors

ALIGNMENT = 64
ADDRESS_BYTES = 8


class DeltaEngine(Engine):
    """Stands in for an engine in one update that brings a delta, and in those that undo and redo it.

    What comes are carriers. They are decoded, and their elements located, while forward passes run. The exchange leaves
    what was served in place of what came, so that it undoes itself.

    Args:
        engine: what is served. It is asked and held as in any update.
        base: the version that it serves.
        maps: of the delta before.
        make_room: called with the bytes that older undo logs may go on to take.

    Attributes:
        digest_left: the digest of what was served after the last exchange had been committed; empty when nobody knows.
    """

    def __init__(
        self, engine: Engine, base: str, maps: ElementMaps, make_room: Callable[[int], None] = lambda nbytes: None
    ) -> None:
        self._engine, self._base, self._maps, self._make_room = engine, base, maps, make_room
        self.group, self.label, self.device = engine.group, engine.label, engine.device
        self.digest_left = ""
        self._budget = 0
        self._deltas: Sequence[Delta] = ()
        self._specs: Sequence[TensorSpec] = ()
        self._mine: Set[str] = frozenset()
        self._whole = WholeTensors()
        self._staged: StagedTensors | None = None
        """Modules that take their tensors whole."""
        self._modules: Mapping[str, str] = {}
        """Why they do."""
        self._raw: dict[str, torch.Tensor] = {}
        self._groups: Sequence[tuple[int, Sequence[Carrier]]] = ()
        """Carriers of one range, and the number of their delta."""
        self._group_of: Mapping[str, int] = {}
        self._lacking: list[int] = []
        """Of each group, the bytes that have not come."""
        self._found: dict[int, list[HostElements]] = {}
        self._known: Sequence[ElementMap] = ()
        self._bases = torch.empty(0, dtype=torch.int64)
        self._exchanges: list[ElementExchange] = []
        self._beside = 0
        """Bytes of carriers that lie beside values, which stay where they came."""
        self._place: tuple[object, tuple[int, ...]] = None, ()
        self._stays: Callable[[], bool] | None = None
        """Looks whether what is served is still there."""
        self._share: Share | None = None
        """The carriers that the engine needs, once it is known what they mean; None for all."""

    # -- what comes -----------------------------------------------------------------------------------------------

    def share(self) -> Share | None:
        """What the engine serves of the version itself; once it is known what carriers mean, those that it needs."""
        if self._deltas and self._is_in_place:
            return self._share
        try:
            share = self._maps.share(self._engine.served_elements())
        except DeltaRefusedError:
            return None
        return carried_share(self._deltas, self._specs, share) if self._deltas else share

    def expects(self) -> tuple[TensorSpec, ...] | None:
        """Only the source knows how many carriers there are."""
        return None

    def can_stage(self, budget: int) -> str:
        self._budget = budget
        try:
            self._engine.served_elements()
        except DeltaRefusedError as error:
            return str(error)
        return why_no_exchange(self.device)

    def stage(self) -> None:
        """Nothing is needed before it is known how much comes."""

    def take(self, deltas: Sequence[Delta], specs: Sequence[TensorSpec]) -> None:
        """Hear what the carriers mean that will come.

        Args:
            deltas: of each source.
            specs: of all carriers.

        Raises:
            PlanMismatchError: they are against another version.
            DeltaRefusedError: there is no memory for them, or they cannot be followed to where they are served.
        """
        for delta in deltas:
            if delta.base != self._base:
                raise PlanMismatchError(
                    f"what comes differs from '{delta.base}', and {self.label} serves '{self._base}'"
                )
        elements = self._elements()
        share = carried_share(deltas, specs, self._maps.share(elements))
        mine = {spec.name for spec in specs} if share is None else {name for name, _, _ in share.ranges}
        self._whole = whole = _taken_whole(deltas, mine, elements)
        exchanged = mine - whole.only
        carriers = [carrier for delta in deltas for carrier in delta.carriers if carrier.name in exchanged]
        log = sum(carrier.count * (carrier.unit + ADDRESS_BYTES) for carrier in carriers) + elements.whole_nbytes
        if log > self._budget:
            count = sum(carrier.count for carrier in carriers)
            raise DeltaRefusedError(
                f"{self.label}: a delta of {count:,} elements takes {log:,} bytes, and staging_budget is "
                f"{self._budget:,}"
            )
        self._deltas, self._specs, self._mine, self._share = deltas, specs, mine, share
        self._look_at(elements)
        self._make_room(self._budget - log)
        self._staged, self._modules = None, reasons_of(elements.whole)
        if elements.whole:
            self._staged = self._engine.stage_whole()
        self._groups = [
            (number, carriers)
            for number, delta in enumerate(deltas)
            for carriers in of_one_range([each for each in delta.carriers if each.name in exchanged and each.count])
        ]
        self._group_of = {each.name: number for number, (_, carriers) in enumerate(self._groups) for each in carriers}
        self._lacking = [0] * len(self._groups)
        for spec in specs:
            if spec.name in self._group_of:
                self._lacking[self._group_of[spec.name]] += spec.nbytes

    def prepare(self, specs: Sequence[TensorSpec], share: object) -> None:
        specs = [spec for spec in specs if spec.name in self._mine]
        exchanged = self._memory_for([spec for spec in specs if spec.name not in self._whole.only])
        self._raw = exchanged | self._memory_for([spec for spec in specs if spec.name in self._whole.only])

    def _memory_for(self, specs: Sequence[TensorSpec]) -> dict[str, torch.Tensor]:
        """One memory for these carriers, by name. What stays of some keeps all of it."""
        sizes = [-(-spec.nbytes // ALIGNMENT) * ALIGNMENT for spec in specs]
        *starts, total = accumulate(sizes, initial=0)
        try:
            raw = _memory(total, self.device)
        except (MemoryError, RuntimeError) as error:
            raise BudgetError(f"{self.label}: no memory for a delta of {total:,} bytes: {error}") from error
        return {spec.name: raw[start : start + spec.nbytes] for spec, start in zip(specs, starts, strict=True)}

    def load(self, pieces: LoadedBucket) -> Fence | None:
        for piece in pieces:
            if piece.spec.name not in self._mine:
                continue
            part = self._raw[piece.spec.name][piece.offset : piece.offset + piece.raw.numel()]
            if part.is_cuda:
                part.copy_(piece.raw, non_blocking=True)
            else:
                copy_bytes(part, piece.raw)
                self._has_come(piece.spec.name, piece.raw.numel())
        return fence(self.device)

    def _has_come(self, name: str, nbytes: int) -> None:
        """Locate the elements of carriers that are there, while others are on their way. A GPU would be waited for."""
        number = self._group_of.get(name)
        if number is None:
            return
        self._lacking[number] -= nbytes
        if not self._lacking[number]:
            self._found[number] = self._locate_on_host(number)

    def finish(self) -> None:
        """Decode what has come, and find where it goes.

        Raises:
            CheckpointError: the carriers are not what the manifest says.
            PlanMismatchError: what is served has moved.
            DeltaRefusedError: two sources bring different values of one element.
        """
        elements = self._elements()
        if self._place != (elements.copies, elements.addresses):
            self._look_at(elements)
        self._stays = elements.stays
        self._exchanges = []
        if self._staged is not None:
            self._staged.load(self._whole.bucket(self._raw))
            self._staged.finish()
        if self.device.type == "cpu":
            self._finish_on_host()
        else:
            self._finish_on_device()
        self._raw = {}
        summary = f"exchanged {self.count:,} elements that differ from those of '{self._base}'"
        self.apply_summary = "; ".join(filter(None, [summary, modules_in_words(self._modules)]))

    def _finish_on_host(self) -> None:
        parts = []
        for number in range(len(self._groups)):
            located = self._found.pop(number, None)
            parts += self._locate_on_host(number) if located is None else located
        if len(self._deltas) > 1:
            parts = each_once_on_host(parts)
        self._exchanges.append(HostExchange(parts))
        held = sum(raw.numel() for name, raw in self._raw.items() if name not in self._whole.only)
        self._beside = held - sum(each.count * each.unit for _, carriers in self._groups for each in carriers)

    def _finish_on_device(self) -> None:
        groups = [(self._known[delta], carriers) for delta, carriers in self._groups]
        found = locate_on_device(groups, self._raw, self._bases)
        bases = np.array(self._place[1], np.int64)
        if not go_apart([known.spans(bases) for known in self._known]):
            found = each_once(found)
        self._exchanges += map(DeviceExchange, found.values())

    def _look_at(self, elements: ServedElements) -> None:
        """What is served is there now. What was located elsewhere is located anew."""
        self._place, self._stays, self._found = (elements.copies, elements.addresses), elements.stays, {}
        self._known = self._maps.of(self._deltas, elements, self.device)
        self._bases = torch.tensor(elements.addresses, dtype=torch.int64, device=self.device)

    def _locate_on_host(self, number: int) -> list[HostElements]:
        delta, carriers = self._groups[number]
        return locate_on_host(carriers, self._raw, self._known[delta], self._bases.numpy())

    @property
    def nbytes(self) -> int:
        """Bytes of the undo log."""
        whole = 0 if self._staged is None else self._staged.nbytes
        return sum(exchange.nbytes for exchange in self._exchanges) + self._beside + whole

    def drop_staged(self) -> None:
        """Nobody goes back: give the memory of modules back. What elements were stays, by which a digest follows."""
        self._staged = None

    @property
    def count(self) -> int:
        """How many elements are exchanged."""
        return sum(exchange.count for exchange in self._exchanges)

    def changes(self) -> Iterator[Changes] | None:
        """What the last exchange has changed, in parts; None where that is not in host memory."""
        found = [exchange.changes() for exchange in self._exchanges]
        known = [each for each in found if each is not None]
        return chain.from_iterable(known) if len(known) == len(found) else None

    # -- what was served, and what is -----------------------------------------------------------------------------

    def restore(self) -> None:
        """See :meth:`Engine.restore`. It is exact only where nobody else has written to what is served.

        Raises:
            PlanMismatchError: somebody has, or it has moved.
        """
        elements = self._elements()
        self._check_place(elements)
        self._stays = elements.stays
        if not self.digest_left or digest_of_elements(elements) != self.digest_left:
            raise PlanMismatchError(
                f"{self.label}: somebody else has written to what is served since a delta was applied, so that it "
                "cannot be undone; bring all of a version"
            )

    def exchange(self) -> None:
        if not self._is_in_place:
            self._check_place(self._elements())
        self._engine.exchange_elements(lambda: uninterrupted(self._exchange_all))

    def _exchange_all(self) -> None:
        """Modules first: they look whether they can, and nothing has changed when they cannot."""
        if self._staged is not None:
            self._staged.exchange()
        try:
            exchange_each(self._exchanges, self.device)
        except BaseException:
            if self._staged is not None:
                self._staged.exchange()
            raise

    @property
    def _is_in_place(self) -> bool:
        """Whether a quick look tells that nothing has moved; else the engine says where everything is."""
        return self._stays is not None and self._stays()

    def _elements(self) -> ServedElements:
        try:
            return self._engine.served_elements()
        except DeltaRefusedError as error:
            raise PlanMismatchError(f"{self.label} takes no delta any more: {error}") from error

    def _check_place(self, elements: ServedElements) -> None:
        if elements.copies is not self._place[0] or elements.addresses != self._place[1]:
            raise PlanMismatchError(
                f"{self.label}: what is served was replaced since a delta was made ready for it; update it again"
            )

    # -- the engine's own -----------------------------------------------------------------------------------------

    @property
    def spoiled(self) -> bool:
        return self._engine.spoiled

    def hold(self) -> int:
        return self._engine.hold()

    def advance(self, forwards: int, timeout: float) -> None:
        self._engine.advance(forwards, timeout)

    def certify(self) -> None:
        self._engine.certify()

    def resume(self) -> float:
        return self._engine.resume()

    def taint(self, reason: str) -> None:
        self._engine.taint(reason)

    def give_up(self, taint: str) -> None:
        self._engine.give_up(taint)


def _taken_whole(deltas: Sequence[Delta], mine: Set[str], elements: ServedElements) -> WholeTensors:
    """What of these carriers modules take whole.

    Raises:
        DeltaRefusedError: not all bytes of a tensor come.
    """
    names = elements.whole_names
    wanted = [spec for spec in elements.specs if spec.name in names and spec.nbytes]
    followed = {elements.specs[number].name for number in set(elements.copies.source.tolist())} if names else set()
    return WholeTensors.of(deltas, mine, wanted, followed)


def _memory(nbytes: int, device: torch.device) -> torch.Tensor:
    """Bytes of no value. On the host they are NumPy's, which asks for large pages: they come sooner."""
    if device.type == "cpu":
        return torch.from_numpy(np.empty(nbytes, np.uint8))
    return torch.empty(nbytes, dtype=torch.uint8, device=device)
