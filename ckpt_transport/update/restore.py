"""A rollback brings sinks back to the version before, which they have kept since they staged the one they serve."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import ClassVar

from ckpt_transport.errors import PlanMismatchError
from ckpt_transport.execution import StageEvent
from ckpt_transport.planning import Manifest, Plan, Role, Stages
from ckpt_transport.update.coordinator import Coordinator
from ckpt_transport.update.introduction import topology_of
from ckpt_transport.update.progress import Progress


class RestoreCoordinator(Coordinator):
    """Leads an update in which no byte moves: sinks exchange what they serve and what they have kept."""

    kind: ClassVar[str] = "rollback"

    @property
    def _wants_staged(self) -> bool:
        return False

    def _bring(self, progress: Progress, before_hold: Callable[[], None]) -> tuple[Plan, list[StageEvent]]:
        """
        Raises:
            PlanMismatchError: a sink cannot go back to that version; says what each has kept instead.
        """
        myself, *others = self._members.joins
        assert myself.manifest is not None
        version = myself.manifest.version
        lacking = [join for join in others if join.role is Role.SINK and join.previous != version]
        if lacking:
            kept = "; ".join(f"{join.label} has kept {join.previous or 'none'}" for join in lacking)
            raise PlanMismatchError(f"not every sink can go back to '{version}': {kept}")
        self._steps.staged = secrets.token_hex(16)
        self._clock.enter("agree")
        self._steps.restore()
        self._apply(before_hold)
        return Plan(Manifest(version, (), ()), topology_of(self._members.joins), (), (), (), Stages(), (), (), ()), []
