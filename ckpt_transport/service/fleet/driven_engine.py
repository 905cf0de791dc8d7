"""One running engine, as its control interface lets it be driven."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class DrivenEngine(ABC):
    """Asks one running engine for what an update needs. Every method may raise EngineError.

    Attributes:
        name: what people call it, as its URL; no other engine has it.
        pause_modes: what may become of running requests. The first mode is ``keep``, which loses none of them. It is
            also that of an engine whose weights are a mix, and of commands that ask for no other.
        tells_pauses_apart: whether it knows the pause of an update from that of others. Then :meth:`pause` leaves an
            engine that others have paused as it is, :meth:`resume` ends the pause of an update only, and both say what
            they have found by ``paused_by_others``.
        paused_by_others: whether others hold requests, too, as of the last time that it was asked.
    """

    name: str
    pause_modes: tuple[str, ...] = ("keep",)
    tells_pauses_apart = paused_by_others = False

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Wait until it serves."""

    @abstractmethod
    def world_size(self) -> int:
        """How many workers it has, each with a sink."""

    def weight_version(self) -> str:
        """The label of the weights that are served; empty where it has none."""
        return ""

    @abstractmethod
    def is_paused(self) -> bool:
        """Whether requests wait, whoever has asked for that."""

    @property
    def resume_hint(self) -> str:
        """How people end a pause that they have asked for, as part of a sentence."""
        return "resume it when it may serve"

    @abstractmethod
    def pause(self, mode: str, timeout: float) -> None:
        """Hold requests; returns when that is so. Without effect where they are held."""

    @abstractmethod
    def resume(self) -> None:
        """Serve requests again."""

    def label(self, version: str) -> None:
        """Name the weights that are served, where it has names for them."""

    @abstractmethod
    def reset_caches(self) -> None:
        """Drop what was computed with old weights."""

    def renew(self, version: str) -> bool:
        """All workers have new weights: name them, unless ``version`` is empty, and drop what was computed by old ones.

        Returns: whether requests are still held.
        """
        if version:
            self.label(version)
        self.reset_caches()
        return self.is_paused()

    def close(self) -> None:
        """Let go of it; it serves on. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
