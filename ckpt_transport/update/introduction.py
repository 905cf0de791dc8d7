"""A process introduces itself to each update, and the planner learns from the introductions who takes part.

This is the one place, besides :class:`~ckpt_transport.update.joining_messages.Join` itself, that knows the fields of a
Join.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ckpt_transport.config import Config
from ckpt_transport.engine import Engine
from ckpt_transport.memory import (
    files_in_reach,
    name_of,
    processes_in_reach,
    readable_from,
    visible_devices,
    why_no_pages,
    why_no_reading,
)
from ckpt_transport.planning import EVERYTHING, Manifest, MeasuredRates, RankInfo, Role, StagingPlace, Topology
from ckpt_transport.rates import kept
from ckpt_transport.transports.interface import Availability
from ckpt_transport.update.available import any_on_devices
from ckpt_transport.update.bandwidths import bandwidths
from ckpt_transport.update.held_manifests import ManifestEncoder, ManifestReader
from ckpt_transport.update.held_shares import ShareEncoder, ShareReader
from ckpt_transport.update.host import host_of
from ckpt_transport.update.messages import Join
from ckpt_transport.update.plan_cache import PlanCache

States = Mapping[str, Availability]
"""The transports of an update, and whether each can run here."""
NOTHING_ASKED: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Introducer:
    """Makes the Join of one process, in whatever role it takes part. The caller adds what one update is about.

    Attributes:
        config: the settings of the process.
        uid: differs from that of any other process.
        shares: encodes what its engine needs.
    """

    config: Config
    uid: str = field(default_factory=lambda: secrets.token_hex(8))
    shares: ShareEncoder = field(default_factory=ShareEncoder)

    def of_sink(
        self, engine: Engine, states: States, routes: tuple[str, ...], plans: PlanCache, **staging: Any
    ) -> Join:
        """The Join of a sink.

        Args:
            engine: where the weights go.
            states: of the transports that the coordinator has named.
            routes: names of the routes that are open.
            plans: what is known from the last update.
            staging: ``unstaged``, ``staging`` and ``previous`` of the Join.
        """
        return self._join(
            Role.SINK,
            engine.label,
            states,
            budget=plans.budget(engine.device),
            shared_budget=plans.shared_budget(),
            routes=routes,
            plan=plans.shape,
            engine=engine.group,
            whole_tensors=engine.whole_tensors,
            keeps_tensors=engine.keeps_tensors,
            devices=tuple(filter(None, [name_of(engine.device)])),
            reads=readable_from(engine.device),
            unread=engine.unread or why_no_reading(),
            unmapped=why_no_pages(engine.device) if engine.device.type == "cuda" else "",
            needs=self.shares.encode(engine.share()),
            ties=tuple(tuple(sorted(names)) for names in engine.ties()),
            **staging,
            **self._link(states),
        )

    def of_source(
        self,
        label: str,
        manifest: Manifest,
        states: States,
        routes: tuple[str, ...],
        plans: PlanCache,
        rank: int = -1,
        asked: Mapping[str, str] = NOTHING_ASKED,
    ) -> Join:
        """The Join of a source rank or a holder; ``rank`` and ``asked`` are those of a source among the sources."""
        return self._join(
            Role.SOURCE,
            label,
            states,
            budget=plans.budget(),
            shared_budget=plans.shared_budget(),
            routes=routes,
            plan=plans.shape,
            rank=rank,
            manifest=manifest,
            asked=dict(asked),
            devices=visible_devices() if any_on_devices(states) else (),
            **self._link(states),
        )

    def of_leader(self, version: str, states: States) -> Join:
        """The Join of a coordinator that brings the version of others and moves no byte itself."""
        return self._join(Role.SOURCE, "coordinator", states, budget=0, rank=0, manifest=Manifest(version, (), ()))

    def _join(self, role: Role, label: str, states: States, **own: Any) -> Join:
        return Join(
            role=role,
            uid=self.uid,
            label=label,
            host=host_of(self.config),
            transports=_usable(states),
            unavailable={name: state.reason for name, state in states.items() if not state.ok},
            rates=kept(),
            processes=processes_in_reach(),
            files=files_in_reach(),
            **own,
        )

    def _link(self, states: States) -> dict[str, Any]:
        """What bytes that this process moves between hosts can count on."""
        return {"link": self.config.link, "bandwidths": bandwidths(_usable(states), self.config)}


def _usable(states: States) -> tuple[str, ...]:
    return tuple(name for name, state in states.items() if state.ok)


def shortened(join: Join, encoder: ManifestEncoder) -> Join:
    """The same, as a source rank says it at each step: its tensors encoded, which mostly are those of before."""
    assert join.manifest is not None, "a source holds something"
    named = Manifest(join.manifest.version, (), ())
    return msgspec.structs.replace(join, manifest=named, held=encoder.encode(join.manifest))


def completed(join: Join, reader: ManifestReader) -> Join:
    """What :func:`shortened` has made shorter, with its tensors; any other as it is.

    Raises: as :meth:`ManifestReader.read`.
    """
    if join.manifest is None or not join.held:
        return join
    return msgspec.structs.replace(join, manifest=reader.read(join.rank, join.manifest.version, join.held), held=b"")


def with_share(join: Join, reader: ShareReader) -> Join:
    """What a sink has said, with the share that it has encoded.

    Raises: as :meth:`ShareReader.read`.
    """
    return msgspec.structs.replace(join, share=reader.read(join.needs), needs=b"") if join.needs else join


def topology_of(joins: Sequence[Join]) -> Topology:
    """Tell the planner who takes part in an update.

    Args:
        joins: of all ranks, in their order.
    """
    shares = list(dict.fromkeys(join.share for join in joins if join.share is not None))
    ranks = tuple(
        RankInfo(
            rank=rank,
            role=join.role,
            host=join.host,
            budget=join.budget,
            shared_budget=join.shared_budget,
            transports=join.transports,
            whole_tensors=join.whole_tensors,
            label=join.label,
            keeps_tensors=join.keeps_tensors,
            devices=join.devices,
            reads=join.reads,
            processes=join.processes,
            unread=join.unread,
            files=join.files,
            unmapped=join.unmapped,
            link=join.link,
            share=EVERYTHING if join.share is None else shares.index(join.share),
        )
        for rank, join in enumerate(joins)
    )
    return Topology(ranks, tuple(shares))


def staging_of(joins: Sequence[Join]) -> dict[int, StagingPlace]:
    """Where sinks stage a version, by rank; of those that say so."""
    return {rank: join.staging for rank, join in enumerate(joins) if join.staging is not None}


def rates_of(joins: Sequence[Join]) -> MeasuredRates:
    """What was measured on each host, as the first of its ranks that knows it says."""
    return {join.host: join.rates for join in reversed(joins) if join.rates is not None}
