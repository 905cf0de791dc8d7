"""Brings new weights into one vLLM worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch

from ckpt_transport import DeltaRefusedError, Engine, LoadedBucket
from ckpt_transport.spi import (
    Fence,
    Fingerprint,
    Landing,
    ServedElements,
    Share,
    StagedTensors,
    StagingPlace,
    TensorSnapshot,
    TensorSpec,
    fence,
)
from ckpt_transport_vllm.cores import all_cores
from ckpt_transport_vllm.model_loading import ModelLoading
from ckpt_transport_vllm.quantization import check_tensors
from ckpt_transport_vllm.quiesce import Quiesce
from ckpt_transport_vllm.sleeping import check_awake
from ckpt_transport_vllm.ties import check_brought, tied_names
from ckpt_transport_vllm.updated_model import UpdatedModel

logger = logging.getLogger(__name__)


class VllmEngine(Engine):
    """Records what the model's own loader does at the first update, and replays that from then on.

    Where that cannot be done, the loader loads, through vLLM's layerwise reload.

    Args:
        find_target: the model that the next update goes into.
        quiesce: holds forward passes.
        reset: called after an update, for state in the worker that depends on weights.
        group, label: see :class:`~ckpt_transport.Engine`.
        verify_always: compare each replay with the loader.
    """

    keeps_tensors = True
    enqueues = reads_along = True

    def __init__(
        self,
        find_target: Callable[[], UpdatedModel],
        quiesce: Quiesce,
        reset: Callable[[], None],
        group: str,
        label: str,
        *,
        verify_always: bool = False,
    ) -> None:
        self.group, self.label = group, label
        self._find_target, self._quiesce, self._reset = find_target, quiesce, reset
        self._loading = ModelLoading(find_target, self.expects, label, verify_always=verify_always)
        self._cores = ExitStack()
        self._known: dict[str, tuple[TensorSpec, ...]] = {}
        self._tied: tuple[tuple[TensorSpec, ...] | None, tuple[frozenset[str], ...]] | None = None
        self._served: TensorSnapshot | None = None
        self._found: Fingerprint | None = None
        self._updating = False
        self.device = next(find_target().model.parameters()).device
        self.expects()

    def begin(self) -> None:
        check_awake(self.label)
        self._updating = True
        self._loading.begin()
        self.unread = self._loading.unread if self.device.type == "cpu" else "its tensors are on a GPU"

    def warm_up(self, specs: Sequence[TensorSpec]) -> Generator[str]:
        self._use_device()
        yield from super().warm_up(specs)
        yield self._loading.record_ahead(specs)
        yield from self._loading.rehearse()

    def expects(self) -> tuple[TensorSpec, ...] | None:
        """The tensors of the checkpoint that the model came from. Once read, its files are not needed any more."""
        target = self._find_target()
        name = str(target.model_config.model)
        expected = self._known.get(name) or target.expects()
        if expected is not None:
            self._known[name] = expected
        return expected

    def check(self, tensors: Sequence[TensorSpec]) -> None:
        check_tensors(self._find_target(), tensors, self.expects(), self.label)
        check_brought(self.ties(), [spec.name for spec in tensors], self.label)

    def ties(self) -> tuple[frozenset[str], ...]:
        expected = self.expects()
        if self._tied is None or self._tied[0] is not expected:
            target = self._find_target()
            parameters = (name for name, _ in target.model.named_parameters())
            names = parameters if expected is None else (spec.name for spec in expected)
            self._tied = expected, tied_names(target, names)
        return self._tied[1]

    def hold(self) -> int:
        return self._quiesce.hold()

    def advance(self, forwards: int, timeout: float) -> None:
        self._quiesce.advance(forwards, timeout)
        self._loading.stand_still()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def share(self) -> Share | None:
        return self._loading.share()

    def prepare(self, specs: Sequence[TensorSpec], share: Share | None) -> None:
        self._loading.prepare(specs, share)

    def foresee(self, buckets: Iterable[LoadedBucket]) -> None:
        self._loading.foresee(buckets)

    def can_stage(self, budget: int) -> str:
        reason = self._loading.can_stage(budget)
        return f"{self.label}: {reason}" if reason else ""

    def stage(self) -> None:
        self._use_device()
        with torch.no_grad():
            self._loading.stage()
        self.enqueues = self._loading.stages_on(self.device)

    def restore(self) -> None:
        self._loading.restore()

    def exchange(self) -> None:
        """See :meth:`Engine.exchange`. What the worker has computed or derived from the other version is forgotten."""
        self._use_device()
        self._loading.exchange()
        self._settle()

    def served_elements(self) -> ServedElements:
        """See :meth:`Engine.served_elements`. In an update the places are noted, so that looking again is quick."""
        if self._updating and not (self._served is not None and self._served.stays()):
            self._served = self._look()
        try:
            elements = self._loading.served_elements()
        except DeltaRefusedError as error:
            raise DeltaRefusedError(f"{self.label}: {error}") from error
        return elements if self._served is None else replace(elements, stays=self._served.look)

    def stage_whole(self) -> StagedTensors:
        self._use_device()
        return self._loading.stage_whole()

    def exchange_elements(self, exchange: Callable[[], None]) -> None:
        """See :meth:`Engine.exchange_elements`. What the worker has computed of the other version is forgotten."""
        self._use_device()
        exchange()
        self._reset()

    def staging_place(self) -> StagingPlace:
        return self._loading.staging_place()

    @property
    def staging_nbytes(self) -> int:
        return self._loading.staging_nbytes

    def drop_staged(self) -> None:
        self._loading.drop_staged()

    def load(self, pieces: LoadedBucket) -> Fence | None:
        self._start()
        self._loading.load(pieces)
        return fence(self.device)

    def landing(self, pieces: LoadedBucket) -> Landing | None:
        if self.unread:
            return None
        self._start()
        return self._loading.landing(pieces)

    def landed(self, pieces: LoadedBucket) -> None:
        self._loading.landed(pieces)

    def _start(self) -> None:
        """Get ready for the first bucket of a version, if this is it."""
        if self._loading.started:
            return
        self._use_device()
        if not self._loading.staging:
            self._cores.enter_context(all_cores(self._find_target().vllm_config))

    def meanwhile(self) -> None:
        """Complete the version: on a GPU all that is done for that comes behind the copies that are enqueued."""
        self._complete()

    def finish(self) -> None:
        """See :meth:`Engine.finish`. What is staged is on a stream of its own, whose end is waited for anyway: forward
        passes go on beside it."""
        self._complete()
        if torch.accelerator.is_available() and not self._loading.staging:
            torch.accelerator.synchronize()

    def _complete(self) -> None:
        """Do what is left to do when all buckets were given, if there were any."""
        if not self._loading.started:
            return
        self._loading.finish()
        self.apply_summary = self._loading.apply_summary
        self._cores.close()
        if not self._loading.staging:
            self._settle()

    def _settle(self) -> None:
        """What forward passes will use is in the model."""
        self._reset()
        self._served = self._look()

    def _look(self) -> TensorSnapshot:
        """What is in the model now; quickly, where all is as it was found the last time."""
        snapshot = TensorSnapshot(self._find_target().model, known=self._found)
        self._found = snapshot.fingerprint
        return snapshot

    def certify(self) -> None:
        if self._served is not None:
            self._served.check()

    def resume(self) -> float:
        try:
            return self._quiesce.resume()
        finally:
            self._served, self._updating, self.enqueues = None, False, True
            self._loading.release()

    def give_up(self, taint: str) -> None:
        """Leave the model to the thread that may be at work on it."""
        logger.error("%s: an update was given up while a call does not return: %s", self.label, taint or "it serves on")
        if taint:
            self._quiesce.taint(taint)
        else:
            self._quiesce.resume()

    def taint(self, reason: str) -> None:
        """Put the model into a state that a later update can start from: its weights are a mix of two versions."""
        logger.error("%s must not serve: %s", self.label, reason)
        self._quiesce.taint(reason)
        self._served, self._updating, self.enqueues = None, False, True
        self._cores.close()
        self._loading.abandon()

    def _use_device(self) -> None:
        """Have the calling thread work on the model's device."""
        device = next(self._find_target().model.parameters()).device
        if device.type != "cpu":
            torch.accelerator.set_device_index(device)
