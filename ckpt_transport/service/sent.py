"""What an update sends of a version: all of it, or carriers of its difference to a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from ckpt_transport.checkpoint import StoredVersion
from ckpt_transport.update.invitations import Invitees
from ckpt_transport.update.report import DeltaSummary


class Sent(NamedTuple):
    """What an update sends of a version.

    Attributes:
        stored: the version, or the carriers of its difference to a base.
        summary: what the report says of it.
        updates: of a difference, by which update each sink got the base.
        silent: sinks that have not answered for ``join_timeout``.
    """

    stored: StoredVersion
    summary: DeltaSummary
    updates: Mapping[str, str]
    silent: tuple[str, ...] = ()

    @property
    def is_delta(self) -> bool:
        return bool(self.updates)

    def to(self, invitees: Invitees) -> Invitees:
        """What is said to these when they are invited."""
        if self.is_delta:
            base = self.summary.base
            return replace(invitees, base=base, base_updates=self.updates, delta=True, deltas_follow=True)
        return replace(invitees, deltas_follow=not invitees.base, silent=self.silent)


def everything(stored: StoredVersion, reason: str) -> Sent:
    """All of a version is sent."""
    nbytes = stored.manifest.nbytes
    return Sent(stored, DeltaSummary("", reason, nbytes, nbytes), {})
