"""What is asked of a version that is to be made."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from ckpt_transport.checkpoint.mapping import Mapping
from ckpt_transport.checkpoint.progress import Progress


@dataclass(frozen=True, slots=True)
class VersionRequest:
    """Says what a version is called, and what becomes of the tensors that are given for it.

    Attributes:
        version: its name.
        replicated, mapping, base, progress: as those of :meth:`~ckpt_transport.checkpoint.store.Store.register`.
        undo: learns how to go back to the state before the request.
        release: learns how to let the version's memory go.
    """

    version: str
    replicated: bool = False
    mapping: Mapping | None = None
    base: str = ""
    progress: Progress | None = None
    undo: ExitStack = field(default_factory=ExitStack)
    release: ExitStack = field(default_factory=ExitStack)
