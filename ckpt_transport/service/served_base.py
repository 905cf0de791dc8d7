"""Whether a sink can take the difference to what it serves: only where that is, byte for byte, what was committed."""

from __future__ import annotations

from ckpt_transport.engine import Engine, digest_of_served
from ckpt_transport.errors import CkptTransportError

NOT_ASKED = "when its version was committed nobody said that deltas follow"


class ServedBase:
    """Holds the digest of what an engine serves, as it was right after the last commit.

    Args:
        engine: the engine.

    Attributes:
        digest: of the tensors that versions change; empty when it is not known.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.digest, self._why_none = "", NOT_ASKED
        self.is_due = False

    def forget(self, *, note: bool) -> None:
        """Another version is served from now on.

        Args:
            note: its digest is to be noted.
        """
        self.digest, self._why_none, self.is_due = "", NOT_ASKED, note

    def note(self) -> None:
        """Note the digest of what is served, if that is due. Forward passes run."""
        if self.is_due:
            self.is_due = False
            self.digest, self._why_none = self._look()

    def objection(self) -> str:
        """Why a delta cannot be put on what is served; empty when it can."""
        if not self.digest:
            return self._why_none
        now, why = self._look()
        return why or ("" if now == self.digest else "somebody else has written to it since it was committed")

    def _look(self) -> tuple[str, str]:
        """The digest, or why there is none."""
        try:
            return digest_of_served(self._engine.served_elements().tensors), ""
        except CkptTransportError as error:
            return "", str(error)
        except Exception as error:
            return "", f"its digest cannot be computed: {type(error).__name__}: {error}"
