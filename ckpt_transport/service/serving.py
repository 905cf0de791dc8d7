"""What a sink serves, and whether another version can be put on it."""

from __future__ import annotations

import time

from ckpt_transport.engine.engine import Engine
from ckpt_transport.service import questions as q
from ckpt_transport.update import messages as m


class Serving:
    """Says which version an engine serves, and which update has brought it.

    Args:
        engine: it.
        version: what it serves now.

    Attributes:
        version: of a tainted sink, the one it served last.
        tainted: why nothing must be served; empty when it may.
        since: seconds of the wall clock at which the version was committed.
        update: the one that has brought the version; empty for what the engine was started with.
    """

    def __init__(self, engine: Engine, version: str) -> None:
        self._engine = engine
        self.version, self.tainted, self.since, self.update = version, "", time.time(), ""

    def becomes(self, version: str) -> None:
        """That version is served from now on."""
        self.version, self.tainted, self.since = version, "", time.time()

    def objection_to_part(self, invite: m.Invite) -> str:
        """Why a version that brings only some tensors cannot be put on what is served; empty when it can."""
        if not invite.base:
            return ""
        label = self._engine.label
        what = f"'{invite.version}' brings only what differs from '{invite.base}'"
        if self.tainted:
            return f"{what}, and {label} holds a mix ({self.tainted}); bring all tensors of a version"
        if self.version != invite.base:
            return (
                f"{what}, and {label} serves '{self.version}'; bring '{invite.base}' first, or all tensors of "
                f"'{invite.version}'"
            )
        if self._may_be_another(invite):
            return (
                f"{what}, and {label} serves another '{invite.base}', which another update has brought; bring all "
                f"tensors of '{invite.version}'"
            )
        return ""

    def _may_be_another(self, invite: m.Invite) -> bool:
        """Whether what is served may be another version of the name of the base; for a delta that must be certain."""
        if invite.delta:
            return not invite.base_update or self.update != invite.base_update
        return bool(invite.base_update) and self.update not in ("", invite.base_update)

    def objection_to_delta(self, asked: q.AskBase) -> str:
        """Why the difference to a base is not one to what is served; empty when it is."""
        if self.tainted:
            return f"{self._engine.label} holds a mix ({self.tainted})"
        if (self.version, self.update) != (asked.base, asked.update):
            return f"{self._engine.label} serves '{self.version}', which another update has brought"
        return ""
