"""A participant keeps what it knows from the last update, so the next version of the same weights needs no new plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from ckpt_transport.decoding import UNREADABLE
from ckpt_transport.errors import PlanMismatchError, SharedMemoryError
from ckpt_transport.execution import RankSchedule
from ckpt_transport.memory import CPU, default_budget, free_shared_memory
from ckpt_transport.planning import (
    NO_LIMIT,
    NOT_MEASURED,
    Manifest,
    MeasuredRates,
    Plan,
    Settings,
    Share,
    TensorRange,
    TensorSpec,
    Topology,
    digest_of,
    plan,
    sending_rates,
    spread,
    verify,
    verify_part,
)
from ckpt_transport.transports.interface import Traits

Expected = tuple[TensorSpec, ...] | None


class PlanCache:
    """Keeps the last plan and what it was made from. The next version may differ in nothing but its name.

    Args:
        budget: bytes of memory that an update may take here; 0 for what free memory allows.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._shared_budget: int | None = None
        self._shared_slots = 0
        self._plan: Plan | None = None
        self._made_from: object = None
        self._schedule: RankSchedule | None = None
        self._proved = ""
        """The shape of the plan that was made and proved here as a whole."""
        self._fits: tuple[str, Expected] = "", None
        self._needed: tuple[Share, Share] | None = None
        """A planned share and an engine's, which were found to be the same."""

    def budget(self, device: torch.device = CPU) -> int:
        """Bytes of memory that an update may take here. It is found out once: a plan holds as long as budgets do.

        Args:
            device: where the weights of a sink are.
        """
        if not self._budget:
            self._budget = default_budget(device)
        return self._budget

    def shared_budget(self) -> int:
        """How many bytes of the budget of this host may be shared memory.

        It is kept as long as about as much is there, for the sake of plans. Others take shared memory, too, and give it
        back: it is found out anew when there is less than half of it, or more than twice as much.
        """
        budget, has = self.budget(), free_shared_memory() + self._shared_slots
        known = self._shared_budget
        if known is None or not min(known, budget) <= 2 * has <= 4 * min(known, budget):
            known = self._shared_budget = has if has < budget else NO_LIMIT
        return known

    @contextmanager
    def taking_slots(self, shared: Callable[[], int]) -> Iterator[None]:
        """The block takes memory for slots. What it lacks of shared memory, the next update does without.

        Args:
            shared: how many bytes of shared memory all slots have afterwards.

        Raises:
            SharedMemoryError: others have taken it since :meth:`shared_budget` was found out.
        """
        try:
            yield
        except SharedMemoryError as error:
            self._shared_budget = None
            raise SharedMemoryError(f"{error}; the next update makes do with what is free then") from error
        finally:
            self._shared_slots = shared()

    @property
    def shape(self) -> str:
        """:attr:`Plan.shape` of the last plan; empty when there is none."""
        return "" if self._plan is None else self._plan.shape

    def make(
        self,
        shards: Sequence[Manifest],
        topology: Topology,
        traits: Mapping[str, Traits],
        settings: Settings,
        present: Sequence[TensorRange] = (),
        rates: MeasuredRates = NOT_MEASURED,
    ) -> Plan:
        """The proved plan for the version that ``shards`` hold, but for what is ``present`` at every sink.

        Raises: as :func:`spread`, :func:`plan` and :func:`verify`.
        """
        version = shards[0].version
        held = [
            (
                shard.version == version,
                shard.extents,
                shard.tensors,
                shard.fingerprint,
                shard.conversions,
                shard.mappings,
                shard.replicated,
                shard.deltas,
            )
            for shard in shards
        ]
        made_from = held, topology, dict(traits), settings, tuple(present), dict(rates)
        if self._plan is None or made_from != self._made_from:
            whole = topology.whole_tensors
            manifest = spread(version, shards, sending_rates(topology, rates), present, whole=whole)
            who = topology.for_specs(digest_of(manifest.specs.values()))
            made = plan(manifest, who, traits, settings, rates)
            verify(made)
            self._plan, self._made_from, self._proved = made, made_from, made.shape
        self._plan = self._plan.for_version(version)
        return self._plan

    def take(self, encoded: bytes, shape: str, version: str) -> Plan:
        """The plan that the coordinator proposes; ``encoded`` is empty when it should be known.

        Raises:
            PlanMismatchError: it is not, or the bytes are not a plan.
        """
        if encoded:
            try:
                self._plan = Plan.decode(encoded)
            except UNREADABLE as error:
                raise PlanMismatchError(f"what the coordinator proposes is no plan: {error}") from error
        elif self._plan is None or self._plan.shape != shape:
            raise PlanMismatchError(f"the coordinator counts on plan {shape[:16]}, which is not known here")
        else:
            self._plan = self._plan.for_version(version)
        return self._plan

    def schedule(self, plan: Plan, rank: int) -> RankSchedule:
        """That rank's part of ``plan``, proved when it is first asked for.

        Raises: as :func:`verify_part`.
        """
        known = self._schedule
        if known is None or known.rank != rank or known.plan.shape != plan.shape:
            if plan.shape != self._proved:
                verify_part(plan, rank, self.budget())
            known = self._schedule = RankSchedule(plan, rank)
        return known

    def fits(self, plan: Plan, expected: Expected) -> bool:
        """Whether a plan of this shape was found to bring what the engine expects, in these very specs."""
        return self._fits[0] == plan.shape and self._fits[1] is expected

    def found_fit(self, plan: Plan, expected: Expected) -> None:
        """Remember that it does."""
        self._fits = plan.shape, expected

    def is_needed(self, planned: Share, own: Share | None, manifest: Manifest) -> bool:
        """Whether a planned share is what an engine needs; of the same two this is found out once."""
        if self._needed is not None and self._needed[0] is planned and self._needed[1] is own:
            return True
        if own is None or own.in_order(manifest.ordered) != planned:
            return False
        self._needed = planned, own
        return True
