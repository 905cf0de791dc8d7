"""Engines with one defect each, and which check must find it, and what it must say."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ckpt_transport import Config, Gate, LoadedBucket, UpdateError
from ckpt_transport.spi import EngineFleet, Fence, Fleet, Segment, TensorSpec
from ckpt_transport.testing.engine import EngineUnderTest
from ckpt_transport_torch import TorchEngine
from ckpt_transport_torch.module_engine import ModuleEngine
from examples.engine_adapter.acme_adapter import AcmeFleet, AcmeServer
from tests.conformance.engines.acme import AcmeUnderTest
from tests.conformance.engines.modules import ForgettingEngine, ModuleUnderTest


class LosesATensor(ForgettingEngine):
    """Leaves one tensor as it was."""

    def load(self, pieces: LoadedBucket) -> Fence | None:
        kept = self._module.state_dict()["layers.1.bias"]
        before = kept.clone()
        fence = super().load(pieces)
        kept.copy_(before)
        return fence


class NeverHolds(ForgettingEngine):
    """Lets forward passes run while bytes are written."""

    def hold(self) -> int:
        return 0

    def advance(self, forwards: int, timeout: float) -> None:
        """Wait for nothing."""


class NeverResumes(ForgettingEngine):
    """Holds requests for good."""

    def resume(self) -> float:
        self._release()
        return 0.0


class DoesNotWait(ForgettingEngine):
    """Holds the next forward pass, and does not wait for the one that runs."""

    def advance(self, forwards: int, timeout: float) -> None:
        """Wait for nothing."""


class StagesInPlace(ForgettingEngine):
    """Says that it stages, and writes to what is served."""

    @property
    def _written(self) -> Mapping[str, torch.Tensor]:
        return self._served()

    def stage(self) -> None:
        super().stage()
        assert self._snapshot is not None
        self._bind(self._snapshot.fingerprint.addresses)

    def load(self, pieces: LoadedBucket) -> Fence | None:
        fence = super().load(pieces)
        self._module.kept.clear()  # type: ignore[operator,union-attr]
        return fence

    def exchange(self) -> None:
        """All is there."""


class _TellsRefusals(Gate):
    """Tells when it has refused a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = threading.Event()

    def enter(self) -> None:
        try:
            super().enter()
        except UpdateError:
            self.refused.set()
            raise


class RefusesRequests(ForgettingEngine):
    """Refuses requests that come during an update, one at least, and does not hold them."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__(module)
        self.gate = self._telling = _TellsRefusals()

    def hold(self) -> int:
        started = super().hold()
        self.gate.taint("an update is under way; come again")
        return started

    def advance(self, forwards: int, timeout: float) -> None:
        self._telling.refused.wait(timeout)


class KeepsAnswers(TorchEngine):
    """Does not forget the answers of old weights."""


class TakesAnything(ForgettingEngine):
    """Says that it does not know what it needs, and takes what comes."""

    def expects(self) -> tuple[TensorSpec, ...] | None:
        return None


class StaysHeld(ForgettingEngine):
    """Holds requests for good when nothing was loaded."""

    loaded = False

    def load(self, pieces: LoadedBucket) -> Fence | None:
        self.loaded = True
        return super().load(pieces)

    def hold(self) -> int:
        self.loaded = False
        return super().hold()

    def resume(self) -> float:
        if self.loaded:
            return super().resume()
        self._release()
        return 0.0


class ServesAMix(ForgettingEngine):
    """Serves on when its weights are a mix."""

    def taint(self, reason: str) -> None:
        self._release()
        self.gate.resume()


class ExchangesEarly(ForgettingEngine):
    """Serves a staged version before it is committed."""

    def finish(self) -> None:
        if self._staging:
            super().exchange()
            self._module.kept.clear()  # type: ignore[operator,union-attr]
        super().finish()

    def exchange(self) -> None:
        """It was exchanged when it was there."""


class KeepsNoVersion(ForgettingEngine):
    """Copies what is staged over what is served, and keeps nothing of that."""

    def exchange(self) -> None:
        assert self._area is not None
        served = self._served()
        for name, tensor in self._area.tensors.items():
            served[name].data.copy_(tensor)


class LeavesThreads(ForgettingEngine):
    """Starts a thread for each update, and ends none."""

    def hold(self) -> int:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return super().hold()


class LeavesSockets(ForgettingEngine):
    """Opens something for each update, and closes nothing."""

    left: ClassVar[list[Any]] = []

    def hold(self) -> int:
        self.left.append(os.pipe())
        return super().hold()


class LeavesMemory(ForgettingEngine):
    """Takes shared memory for each update, and gives none back."""

    left: ClassVar[list[Segment]] = []

    def hold(self) -> int:
        self.left.append(Segment.create(4096))
        return super().hold()


class NamesNothing(AcmeServer):
    """Keeps the new version's name for itself."""

    def label(self, version: str) -> None:
        """The engine is not told."""


class NeverPauses(AcmeServer):
    """Leaves requests to the sink."""

    def pause(self, mode: str, timeout: float) -> None:
        """Nobody is held."""


class SeesNoPause(AcmeServer):
    """Does not find out that people have paused the engine."""

    def is_paused(self) -> bool:
        return False


def driven_by(server: type[AcmeServer]) -> type[EngineUnderTest]:
    """An engine that is driven so, to be tested."""

    class Driven(AcmeFleet):
        def __init__(self, url: str, config: Config) -> None:
            EngineFleet.__init__(self, [server(url)], config, "keep")

    class Broken(AcmeUnderTest):
        def make_fleet(self, url: str, config: Config) -> Fleet:
            return Driven(url, config)

    Broken.__name__ = server.__name__
    return Broken


def under_test(engine: type[ModuleEngine]) -> type[EngineUnderTest]:
    """That engine, to be tested."""

    class Broken(ModuleUnderTest):
        def make_engine(self) -> ModuleEngine:
            return engine(self.model)

    Broken.__name__ = engine.__name__
    return Broken


@dataclass(frozen=True)
class Case:
    """One broken engine.

    Attributes:
        engine: it, to be tested.
        found_by: the check that must fail, and a part of its explanation.
        must: seconds to wait for what must happen; few where that is how the defect shows.
    """

    engine: type[EngineUnderTest]
    found_by: Mapping[str, str]
    must: float = 60.0


FEW = 3.0

CASES = (
    Case(under_test(LosesATensor), {"brings_a_version": "by no version"}),
    Case(under_test(NeverHolds), {"holds_requests": "while bytes are written is answered"}),
    Case(under_test(NeverResumes), {"resumes_requests": "that was held is not answered within"}, must=FEW),
    Case(under_test(DoesNotWait), {"waits_for_running": "bytes are written while a forward pass runs"}),
    Case(under_test(StagesInPlace), {"stages_beside": "while a version is staged is answered by"}),
    Case(under_test(RefusesRequests), {"answers_all": "an update is under way; come again"}),
    Case(under_test(KeepsAnswers), {"drops_caches": "answered by version 1, and not by version 2"}),
    Case(under_test(TakesAnything), {"refuses_misfits": "a version that does not fit is taken in"}),
    Case(under_test(StaysHeld), {"goes_back": "is not answered within"}, must=FEW),
    Case(under_test(ServesAMix), {"refuses_a_mix": "from weights that are a mix"}),
    Case(under_test(ExchangesEarly), {"keeps_the_old_version": "answered by version 2, and not by version 1"}),
    Case(under_test(KeepsNoVersion), {"rolls_back": "answered by version 2, and not by version 1"}),
    Case(driven_by(NamesNothing), {"names_the_version": "the engine serves v2 and says 'v1'"}),
    Case(driven_by(NeverPauses), {"pauses_and_resumes": "not paused while bytes are written"}),
    Case(driven_by(SeesNoPause), {"keeps_the_pause_of_others": "ended a pause that it had not begun"}),
    Case(under_test(LeavesThreads), {"leaks_nothing": "threads"}, must=FEW),
    Case(under_test(LeavesSockets), {"leaks_nothing": "open files"}, must=FEW),
    Case(under_test(LeavesMemory), {"leaks_nothing": "segments of shared memory"}, must=FEW),
)
