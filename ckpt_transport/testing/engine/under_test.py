"""An engine under test serves one of three versions, and is asked what it makes of a request."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch

from ckpt_transport.service.fleet import DrivenEngine, Fleet, FleetReport, Updates
from ckpt_transport.service.parameter_server import ParameterServer
from ckpt_transport.update.report import Report


class EngineUnderTest(ABC):
    """One engine that serves version 1 from when it is made, and calls it ``v1``. Version 2 is brought to it.

    A subclass is made with the :class:`~ckpt_transport.Config` of its sinks. It may also be made for many checks, when
    it is brought back to version 1 each time.

    Attributes:
        sinks: addresses of the sinks of all its ranks.
        processes: those that are looked at for what they leak.
    """

    sinks: Sequence[str]
    processes: Sequence[int] = (os.getpid(),)

    @abstractmethod
    def tensors(self, version: int) -> Mapping[str, torch.Tensor]:
        """What a trainer brings for version 1 or 2."""

    def misfit(self) -> Mapping[str, torch.Tensor]:
        """A version that the engine must refuse; by default version 2 without its first tensor."""
        return dict([*self.tensors(2).items()][1:])

    @abstractmethod
    def expected(self, version: int) -> object:
        """What :meth:`ask` returns of a version. It is found out without the adapter."""

    @abstractmethod
    def ask(self) -> object:
        """Make a request of one forward pass, the same each time, and return the answer; raises when it is refused.

        Any thread may call. An answer of several forward passes may be begun by one version and ended by the next.
        """

    def ask_meanwhile(self, act: Callable[[], None]) -> object:
        """As :meth:`ask`, and call ``act`` in the middle of a forward pass, which waits for that.

        Raises:
            NotImplementedError: nobody can be called there.
        """
        raise NotImplementedError("nobody is called in the middle of a forward pass")

    def update(self, server: Updates, version: str) -> Report:
        """Bring a version of ``server`` to the engine."""
        report = server.update(version, self.sinks)
        assert report is not None
        return report

    def rollback(self, server: ParameterServer) -> None:
        """Have the engine serve the version before."""
        server.rollback(self.sinks)

    def close(self) -> None:
        """End it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FleetUnderTest(EngineUnderTest):
    """An engine that is driven from outside, by a fleet of this one engine.

    Attributes:
        fleet: updates it.
        driven: asks it, as people may who have nothing to do with updates.
        last: what the fleet said of the last update.
    """

    fleet: Fleet
    driven: DrivenEngine
    last: FleetReport

    def update(self, server: Updates, version: str) -> Report:
        report = self.fleet.update(server, version)
        assert report is not None
        self.last = report
        return report.update

    def rollback(self, server: ParameterServer) -> None:
        self.last = self.fleet.rollback(server)
