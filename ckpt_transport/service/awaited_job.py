"""A staged job whose owner lives in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Generic, Self

from ckpt_transport.service.in_thread import InThread, to_its_end
from ckpt_transport.service.staged_job import Outcome, StagedJob


class AwaitedJob(Generic[Outcome]):
    """A :class:`StagedJob` for an event loop, which goes on meanwhile. Made by ``staging``.

    As an asynchronous context it is dropped at the end of the block, unless it was committed.

    Attributes:
        version: its name.
    """

    def __init__(self, job: StagedJob[Outcome], in_thread: InThread) -> None:
        self.version = job.version
        self._job, self._in_thread = job, in_thread

    async def commit(self, before_hold: Callable[[], None] | None = None) -> Outcome | None:
        """Have every sink serve the version, or none, as :meth:`StagedJob.commit`.

        Where the task is cancelled, the commit ends as by an interrupt, before this returns: everywhere or nowhere, as
        the ``__cause__`` of the CancelledError says.

        Args:
            before_hold: as that of :meth:`StagedJob.commit`; called in another thread than that of the event loop.

        Raises: as :meth:`StagedJob.commit`.
        """
        return await self._in_thread(partial(self._job.commit, before_hold))

    async def drop(self) -> None:
        """Have every sink let go of the version, as :meth:`StagedJob.drop`. It is dropped also where this is cancelled.

        Raises: as :meth:`StagedJob.drop`.
        """
        await to_its_end(self._job.drop)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drop()


async def staged_awaiting(stage: Callable[[], StagedJob[Outcome]], in_thread: InThread) -> AwaitedJob[Outcome]:
    """Stage a version. Where that is cancelled, sinks have let go of it before this returns.

    Args:
        stage: blocks until it is staged.
        in_thread: awaits a call that blocks, and interrupts it where it is cancelled.
    """
    jobs: list[StagedJob[Outcome]] = []
    try:
        await in_thread(lambda: jobs.append(stage()))
    except asyncio.CancelledError:
        for job in jobs:
            await to_its_end(job.drop)
        raise
    return AwaitedJob(jobs[0], in_thread)
