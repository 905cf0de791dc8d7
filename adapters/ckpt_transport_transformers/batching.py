"""Continuous batching runs a model in a thread of its own, and keeps what was computed of prefixes of prompts."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

Manager = Any
"""``transformers.ContinuousBatchingManager``."""


class Batching:
    """The managers of continuous batching that a model has, as long as they live.

    Args:
        model: of transformers. Its managers are known from now on, and one that it keeps between sessions.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: weakref.WeakSet[Manager] = weakref.WeakSet()
        self._make: Callable[..., Manager] = model.init_continuous_batching
        kept = getattr(model, "_cached_continuous_batching_manager", None)
        if kept is not None:
            self._known.add(kept)

        def init_continuous_batching(*args: Any, **kwargs: Any) -> Manager:
            manager = self._make(*args, **kwargs)
            self._known.add(manager)
            return manager

        self._wrapped = init_continuous_batching
        model.init_continuous_batching = init_continuous_batching

    @property
    def managers(self) -> tuple[Manager, ...]:
        return tuple(self._known)

    def forget_prefixes(self) -> None:
        """Drop what was computed of prompts by weights that are served no more; no loop may be between two halts."""
        for manager in self.managers:
            processor = manager.batch_processor
            if processor is not None and processor.cache.use_prefix_sharing:
                _forget_prefixes(processor.cache)

    def detach(self) -> None:
        """Know of no further manager."""
        if self._model.__dict__.get("init_continuous_batching") is self._wrapped:
            del self._model.init_continuous_batching


class Halts:
    """Halts the loops of managers between two batches.

    A loop is asked by a thread of its own, because asking waits for the batch that runs, however long that takes.
    """

    def __init__(self) -> None:
        self._halts: list[_Halt] = []

    def ask(self, managers: tuple[Manager, ...]) -> None:
        """Ask the loops that run to halt; does not wait."""
        self._halts = [_Halt(manager) for manager in managers if manager.is_running()]

    def wait(self, timeout: float) -> None:
        """Wait until all stand still, or have ended.

        Raises:
            TimeoutError: one does not, within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        for halt in self._halts:
            if not halt.reached.wait(max(deadline - time.monotonic(), 0.0)):
                raise TimeoutError(f"continuous batching has not ended a batch within {timeout:g} s")

    def end(self) -> None:
        """Let the loops go on; also those that have not halted yet."""
        for halt in self._halts:
            halt.over.set()
        self._halts = []


class _Halt:
    def __init__(self, manager: Manager) -> None:
        self.reached, self.over = threading.Event(), threading.Event()
        self._manager = manager
        threading.Thread(target=self._halt, name="ckpt-transport-halt", daemon=True).start()

    def _halt(self) -> None:
        try:
            with self._manager.pause():
                self.reached.set()
                self.over.wait()
        except RuntimeError:  # the loop has ended
            self.reached.set()


def _forget_prefixes(cache: Any) -> None:
    """No later request is to share a block that the old weights have filled.

    Those that no request uses go back to the pool. Those of requests under way lose their hashes, and get none again:
    such a request goes on, as it does in other engines, with what it has.
    """
    cache.evict_cached_blocks()
    running: set[str] = set()
    for allocator in cache.cache_allocators.values():
        allocator.ledger.hash_to_block.clear()
        allocator.ledger.block_to_hash.clear()
        running.update(allocator.block_table)
    if not isinstance(cache.mark_complete_blocks, _MarksOfOthers):
        cache.mark_complete_blocks = _MarksOfOthers(cache.mark_complete_blocks)
    cache.mark_complete_blocks.left_out = frozenset(running)


class _MarksOfOthers:
    """Marks complete blocks so that later requests share them, but for those of some requests."""

    def __init__(self, mark: Callable[[Any, dict[str, int]], None]) -> None:
        self._mark = mark
        self.left_out: frozenset[str] = frozenset()

    def __call__(self, state: Any, complete_blocks: dict[str, int]) -> None:
        if state.request_id not in self.left_out:
            self._mark(state, complete_blocks)
