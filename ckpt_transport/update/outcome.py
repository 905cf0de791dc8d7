"""The outcome of an update says which sinks serve what, and which must not serve."""

from __future__ import annotations

from collections.abc import Iterable

from ckpt_transport.errors import CkptTransportError, TaintedError, UpdateAbortedError
from ckpt_transport.planning import Role
from ckpt_transport.update.membership import Membership

MUTE = "these live and do not say what they serve"


class Outcome:
    """Sorts the members of an update that has ended by what they have said.

    Args:
        members: of the update; whoever has answered Commit or Abort is filed there.
        version: the one that was brought.
    """

    def __init__(self, members: Membership, version: str) -> None:
        self._members, self._version = members, version
        sinks = [rank for rank in members.others if members.joins[rank].role is Role.SINK]
        ended = {rank: members.aborted.get(members.addresses[rank]) for rank in sinks}
        silent = [rank for rank in members.others if not members.has_ended(rank)]
        self.paused = {
            rank: members.committed[address].paused
            for rank in sinks
            if (address := members.addresses[rank]) in members.committed and ended[rank] is None
        }
        """Of each sink that serves the new version, by rank: for how many seconds its forward passes were held."""
        self._tainted = [rank for rank, aborted in ended.items() if aborted is not None and aborted.tainted]
        self._kept = [rank for rank, aborted in ended.items() if aborted is not None and not aborted.tainted]
        self._dead = [rank for rank in silent if not members.alive(rank)]
        self._mute = [rank for rank in silent if rank not in self._dead]
        self._mute_sinks = [rank for rank in self._mute if rank in sinks]

    @property
    def lost(self) -> tuple[str, ...]:
        """Labels of the members that are dead and have not said what they serve."""
        return tuple(self._members.joins[rank].label for rank in self._dead)

    def fault_of_commit(self) -> CkptTransportError | None:
        """Why the update is no success although Commit was sent; None when each sink that lives serves the version."""
        members = self._members
        if not (self._tainted or self._kept or self._mute_sinks):
            return None
        reasons = [why for address, why in members.left.items() if address in members.addresses]
        if self._kept and not (self.paused or self._tainted or self._mute_sinks or self._dead):
            return self.failure("; ".join(reasons), applying=False)
        said = {
            f"these serve '{self._version}'": list(self.paused),
            "these have new weights and refuse to serve until an update succeeds": self._tainted,
            "these serve what they did before": self._kept,
            MUTE: self._mute_sinks,
            "these are gone": self._dead,
        }
        parts = "; ".join(f"{what}: {self._labels(ranks)}" for what, ranks in said.items() if ranks)
        because = f" ({'; '.join(reasons)})" if reasons else ""
        return TaintedError(
            f"the update failed when it was committed{because}; {parts}; update all of them again",
            tuple(map(members.label, (*self._tainted, *self._mute_sinks))),
            tuple(map(members.label, self.paused)),
        )

    def failure(
        self, reason: str, *, applying: bool, unchanged: type[UpdateAbortedError] = UpdateAbortedError
    ) -> CkptTransportError:
        """The error of an update that was rolled back because of ``reason``.

        Args:
            reason: in words.
            unchanged: what is raised where nothing has changed.
            applying: sinks may have been given bytes, so that of one which says nothing nobody knows what it holds.
        """
        members = self._members
        silent = self._labels(sorted((*self._dead, *self._mute)))
        gone = f"; no answer from {silent}" if silent else ""
        unnamed = [rank for rank in self._dead if members.label(rank) not in reason]
        if unnamed:
            reason = f"{self._labels(unnamed)} {'is' if len(unnamed) == 1 else 'are'} gone; {reason}"
            gone = f"; no answer from {self._labels(self._mute)}" if self._mute else ""
        mute = tuple(map(members.label, self._mute_sinks)) if applying else ()
        tainted = tuple(members.who(address) for address, aborted in members.aborted.items() if aborted.tainted)
        if tainted:
            return TaintedError(
                f"the update failed ({reason}){gone}; these sinks hold a mix of two versions and refuse to serve until "
                f"an update succeeds: {', '.join(tainted)}",
                (*tainted, *mute),
            )
        if mute:
            return TaintedError(
                f"the update failed ({reason}){gone}; {MUTE}: {', '.join(mute)}; update all sinks again", mute
            )
        kept = "every sink that answered" if silent else "every sink"
        return unchanged(f"the update failed ({reason}){gone}; it changed nothing: {kept} is as it was before")

    def _labels(self, ranks: Iterable[int]) -> str:
        return ", ".join(map(self._members.label, ranks))
