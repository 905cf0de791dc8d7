"""The way into one vLLM worker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from ckpt_transport import Engine, LoadedBucket
from ckpt_transport.errors import RecordingError
from ckpt_transport.memory import Fence, fence
from ckpt_transport.planning import Share, TensorSpec
from ckpt_transport.replay import Bound
from ckpt_transport_vllm import load_format
from ckpt_transport_vllm.comparing import Comparing
from ckpt_transport_vllm.cores import all_cores
from ckpt_transport_vllm.layerwise import LayerwiseReload
from ckpt_transport_vllm.loading import Loading
from ckpt_transport_vllm.quantization import check_tensors
from ckpt_transport_vllm.quiesce import Quiesce
from ckpt_transport_vllm.recorded import Recorded
from ckpt_transport_vllm.replaying import Replaying
from ckpt_transport_vllm.target import Target
from ckpt_transport_vllm.ties import check_brought, tied_names

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
    enqueues = True

    def __init__(
        self,
        find_target: Callable[[], Target],
        quiesce: Quiesce,
        reset: Callable[[], None],
        group: str,
        label: str,
        *,
        verify_always: bool = False,
    ) -> None:
        self.group, self.label = group, label
        self._find_target, self._quiesce, self._reset = find_target, quiesce, reset
        self._verify_always = verify_always
        self._loading: Loading | None = None
        self._replaying: Replaying | None = None
        self._cores = ExitStack()
        self._known: dict[str, tuple[TensorSpec, ...]] = {}
        self._tied: tuple[tuple[TensorSpec, ...] | None, tuple[frozenset[str], ...]] | None = None
        self._knows = False
        self._coming: tuple[TensorSpec, ...] | None = None
        self._partial = False
        self._recorded: Recorded | None = None
        self._served: Bound | None = None
        self._refused: tuple[tuple[TensorSpec, ...] | None, str] = None, ""
        self._seconds = 0.0
        self.device = next(find_target().model.parameters()).device
        self.expects()

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
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def share(self) -> Share | None:
        recorded = self._recorded
        if recorded is None or self._verify_always or not recorded.holds_for(self._find_target(), recorded.specs):
            return None
        return recorded.share

    def prepare(self, specs: Sequence[TensorSpec], share: Share | None) -> None:
        self._coming, self._partial = tuple(specs), share is not None

    def load(self, pieces: LoadedBucket) -> Fence | None:
        if self._replaying is None and self._loading is None:
            self._begin()
        began = time.perf_counter()
        if self._replaying is not None:
            self._replaying.load(pieces)
        elif self._loading is not None:
            self._loading.load(pieces)
        self._seconds += time.perf_counter() - began
        return fence(self.device)

    def finish(self) -> None:
        began = time.perf_counter()
        if self._replaying is not None:
            assert self._recorded is not None
            self._replaying.finish()
            self._recorded.check_bound()
            self.told = self._replaying.told()
        elif self._loading is not None:
            self._loading.finish(complete=not self._knows)
            seconds, reason = self._seconds + time.perf_counter() - began, self._refused[1]
            self.told = f"loaded by the loader in {seconds:.3f} s" + (f": {reason}" if reason else "")
        else:
            return
        self._loading = self._replaying = None
        self._cores.close()
        self._reset()
        self._served = load_format.bound(self._find_target().model)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def certify(self) -> None:
        if self._served is not None:
            self._served.check()

    def resume(self) -> float:
        self._served = None
        return self._quiesce.resume()

    def give_up(self, taint: str) -> None:
        """Leave the model to the thread that may be at work on it."""
        logger.error("%s: an update was given up while a call does not return: %s", self.label, taint or "it serves on")
        if taint:
            self._quiesce.taint(taint)
        else:
            self._quiesce.resume()

    def taint(self, reason: str) -> None:
        """Put the model into a state that a later update can start from; its weights are a mix."""
        logger.error("%s must not serve: %s", self.label, reason)
        self._quiesce.taint(reason)
        ways = self._replaying, self._loading
        self._loading = self._replaying = self._recorded = self._served = None
        self._cores.close()
        for way in ways:
            if way is not None:
                way.restore()

    def _begin(self) -> None:
        target = self._find_target()
        device = next(target.model.parameters()).device
        if device.type != "cpu":
            torch.accelerator.set_device_index(device)
        expected = self.expects()
        self._knows = expected is not None
        self._seconds = 0.0
        self._cores.enter_context(all_cores(target.vllm_config))
        recorded = self._recording(target)
        if recorded is None:
            reload = LayerwiseReload(target)
            self._loading = Loading(reload, expected or ())
            reload.begin()
        else:
            compares = self._verify_always or not recorded.verified
            self._replaying = (Comparing if compares else Replaying)(target, recorded)
            self._replaying.begin()

    def _recording(self, target: Target) -> Recorded | None:
        """What is known of the loader for the tensors that come; None when it must load them itself."""
        coming = self._coming
        if coming is None or self._refused[0] == coming:
            return None
        if self._recorded is not None and self._recorded.holds_for(target, coming):
            return self._recorded
        if self._partial:
            raise RecordingError(f"{self.label} has changed, and only a share of the version comes")
        self._recorded, reason = None, ""
        try:
            recorded = Recorded.of(target, coming)
        except RecordingError as error:
            reason = str(error)
        else:
            if not self._knows and recorded.empty:
                reason = f"nothing comes for all of {recorded.empty[0]}"
        if reason:
            self._refused = coming, reason
            logger.warning("%s: weights are loaded by the loader and not replayed: %s", self.label, reason)
        else:
            self._recorded, self._refused = recorded, (None, "")
        return self._recorded
