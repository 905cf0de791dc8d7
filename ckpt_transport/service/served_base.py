"""Whether a sink can take the difference to what it serves: only where that is, byte for byte, what was committed."""

from __future__ import annotations

from collections.abc import Callable

from ckpt_transport.engine import (
    Engine,
    ServedElements,
    ServedSums,
    can_be_kept,
    digest_beside_whole,
    digest_of_elements,
)
from ckpt_transport.errors import CkptTransportError, DeltaRefusedError
from ckpt_transport.reasons import named_reason
from ckpt_transport.update.delta_engine import DeltaEngine

NOT_ASKED = "when its version was committed nobody said that deltas follow"
SPARSE_BYTES = 200
"""Where one element in so many bytes has changed, or fewer, a digest is changed sooner than it is computed anew."""


class ServedBase:
    """Holds the digest of what an engine serves, as it was right after the last commit.

    On a CPU it is kept up to date from what deltas change, where that is little; else what is served is read, and so is
    what comes whole in each delta.

    Args:
        engine: the engine.

    Attributes:
        digest: of the tensors that versions change; empty when it is not known.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.digest, self._why_none = "", ""
        self.is_due = False
        self._sums: ServedSums | None = None
        self._sums_of: tuple[object, tuple[int, ...]] = None, ()
        self._by: DeltaEngine | None = None

    def forget(self, *, note: bool, by: Engine) -> None:
        """Another version is served from now on.

        Args:
            note: its digest is to be noted.
            by: what has brought it.
        """
        if self.is_due or not note or not isinstance(by, DeltaEngine):
            self._sums = None
        self._by = by if isinstance(by, DeltaEngine) else None
        self.digest, self._why_none, self.is_due = "", "", note

    def note(self) -> None:
        """Note the digest of what is served, if that is due. Forward passes run."""
        if self.is_due:
            self.is_due = False
            self.digest, self._why_none = self._look(self._noted)

    def objection(self) -> str:
        """Why a delta cannot be put on what is served, with the engine's label; empty when it can."""
        if not self.digest:
            return self._why_none or self._labelled(NOT_ASKED)
        now, why = self._look(digest_of_elements)
        if why or now == self.digest:
            return why
        return self._labelled("somebody else has written to it since it was committed")

    def _labelled(self, why: str) -> str:
        return f"{self._engine.label}: {why}"

    def _look(self, compute: Callable[[ServedElements], str]) -> tuple[str, str]:
        """The digest, or why there is none."""
        try:
            return compute(self._engine.served_elements()), ""
        except DeltaRefusedError as error:
            return "", str(error)
        except CkptTransportError as error:
            return "", self._labelled(str(error))
        except Exception as error:
            return "", self._labelled(f"its digest cannot be computed: {named_reason(error)}")

    def _noted(self, elements: ServedElements) -> str:
        """The digest of what was committed."""
        sums, self._sums = self._sums, None
        if sums is None or not self._follows(sums, elements):
            if not can_be_kept(elements.tensors):
                return digest_of_elements(elements)
            sums = ServedSums(elements.tensors)
        self._sums, self._sums_of = sums, (elements.copies, elements.addresses)
        return digest_beside_whole(sums.digest, elements)

    def _follows(self, sums: ServedSums, elements: ServedElements) -> bool:
        """Whether sums could be changed as a delta has changed what they are of; if not, they are of no use."""
        nbytes = sum(tensor.nbytes for tensor in elements.tensors.values())
        copies, addresses = self._sums_of
        if self._by is None or copies is not elements.copies or addresses != elements.addresses:
            return False
        if self._by.count * SPARSE_BYTES > nbytes:
            return False
        changes = self._by.changes()
        return changes is not None and all(sums.change(*each) for each in changes)
