"""Holds the sink of one SGLang scheduler, which is one rank of an engine."""

from __future__ import annotations

import os
from multiprocessing.util import Finalize
from typing import Any

from ckpt_transport import Config, ConfigError, Sink
from ckpt_transport.spi import listen, warm_up
from ckpt_transport_sglang.covered import check_covered
from ckpt_transport_sglang.engine import SglangEngine
from ckpt_transport_sglang.scheduler_gate import SchedulerGate
from ckpt_transport_sglang.served_model import ServedModel

KEPT = "_ckpt_transport"
"""The attribute of a scheduler that has this."""


class Updatable:
    """Makes a scheduler updatable. Its methods run on the scheduler's thread, and answer in words.

    Args:
        scheduler: SGLang's.

    Raises:
        ConfigError: it cannot be updated; says why.
    """

    def __init__(self, scheduler: Any) -> None:
        self._model = ServedModel(scheduler)
        check_covered(self._model)
        self._gate = SchedulerGate(scheduler)
        self._sink: Sink | None = None

    @classmethod
    def of(cls, scheduler: Any) -> Updatable:
        """The one of this scheduler."""
        if KEPT not in scheduler.__dict__:
            setattr(scheduler, KEPT, cls(scheduler))
        found: Updatable = scheduler.__dict__[KEPT]
        return found

    def describe(self) -> dict[str, str]:
        """Say what drivers want to know of the engine.

        Returns: its ``world_size``, the ``version`` that it names (empty when nobody has named it), and whether it is
            ``paused`` (empty when not).
        """
        return self._model.described()

    def attach(self, host: str, engine: str) -> dict[str, str]:
        """Have a sink that the caller can reach, and make way for the update that follows.

        Args:
            host: where the caller runs; the sink listens on a UNIX socket when that is here.
            engine: a name that all ranks of this engine are given, and no other's.

        Returns: the ``address`` of the sink and its ``label``, and the ``world_size`` of the engine.
        """
        before, described = self._sink, self._model.described()

        def make() -> SglangEngine:
            label = f"SGLang rank {self._model.rank} in process {os.getpid()}"
            always = Config.load().verify_apply == "always"
            return SglangEngine(self._model, self._gate, engine, label, verify_always=always)

        self._sink = listen(before, host, described["version"], make)
        if self._sink is not before:
            Finalize(None, self._sink.close, exitpriority=10)
        self._gate.make_way()
        return {
            "address": self._sink.address,
            "label": self._sink.label,
            "world_size": described["world_size"],
        }

    def renew(self, version: str) -> dict[str, str]:
        """As :meth:`drop_caches`, and name what is served, unless ``version`` is empty."""
        self._model.drop_caches()
        if version:
            self._model.name(version)
        return {}

    def drop_caches(self) -> dict[str, str]:
        """Drop what was computed of running and of earlier requests by old weights.

        Raises:
            EngineError: SGLang has refused to.
        """
        self._model.drop_caches()
        return {}

    def warm_up(self) -> dict[str, str]:
        """Do in the background, while requests are served, what the first update would do.

        Raises:
            ConfigError: there is no sink yet, or it is not known what versions will look like.
        """
        if self._sink is None:
            raise ConfigError("this scheduler is not updatable yet; attach before")
        warm_up(self._sink, self._model.expects())
        return {}
