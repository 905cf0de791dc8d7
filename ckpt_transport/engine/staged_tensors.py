"""Some tensors of a version lie beside what is served of them, while the others are changed element by element."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ckpt_transport.engine.loaded_bucket import LoadedBucket


class StagedTensors(ABC):
    """Holds modules of an engine beside those that are served, and exchanges them.

    After :meth:`exchange` the version before is here, so exchanging once more takes a version back, also in a later
    update.

    Attributes:
        nbytes: bytes of memory that this takes.
    """

    nbytes: int

    @abstractmethod
    def load(self, pieces: LoadedBucket) -> None:
        """Load whole tensors. Forward passes run, and do not see it. ``pieces`` last until :meth:`finish` returns."""

    @abstractmethod
    def finish(self) -> None:
        """All has come: do what must be done before it can be served.

        Raises:
            RecordingError: something has not.
        """

    @abstractmethod
    def exchange(self) -> None:
        """Exchange what is here and what is served, all or nothing; no forward pass runs. Twice changes nothing.

        Raises:
            PlanMismatchError: what is served is not what this was made for; nothing was changed.
        """
