"""Is the worker extension of ``vllm serve ... --worker-extension-cls ckpt_transport_vllm.WorkerExtension``."""

from __future__ import annotations

import dataclasses
import functools
import os
from multiprocessing.util import Finalize
from typing import Any

from ckpt_transport import Config, ConfigError, Sink
from ckpt_transport_vllm.checksums import checksums
from ckpt_transport_vllm.engine import VllmEngine
from ckpt_transport_vllm.listening import listen
from ckpt_transport_vllm.quantization import check_quantization
from ckpt_transport_vllm.quiesce import WorkerGate
from ckpt_transport_vllm.updated_model import UpdatedModel
from ckpt_transport_vllm.versions import check_features, check_version, installed_version


@dataclasses.dataclass(frozen=True, slots=True)
class AttachAnswer:
    """What :meth:`WorkerExtension.ckpt_transport_attach` answers.

    Attributes:
        error: why there is no sink; the other fields are empty then.
        address: where the sink can be invited.
        label: what people call it.
        version: what it serves; empty when nobody has said.
        tainted: why it must not serve; empty when it may.
        keeper: where the engine is claimed, be it for the model that is served or for its draft model.
    """

    error: str = ""
    address: str = ""
    label: str = ""
    version: str = ""
    tainted: str = ""
    keeper: str = ""


class WorkerExtension:
    """Methods for ``collective_rpc``.

    Each answers with a dictionary on every rank and never raises: vLLM would take the other ranks' answers for those to
    its next call.
    """

    def ckpt_transport_attach(
        self, host: str = "", engine: str = "", version: str = "", draft: bool = False
    ) -> dict[str, str]:
        """Make this worker updatable; once it is, say where.

        Args:
            host: where the caller runs; the sink listens on a UNIX socket when that is here. Empty for here.
            engine: a name that all workers of this engine are given, and no other's.
            version: what is served now; of use only when the worker does not know.
            draft: the draft model is meant, not the one that is served.

        Returns: an :class:`AttachAnswer` as a dictionary.
        """
        try:
            return dataclasses.asdict(_attach(self, host, engine, version, draft))
        except Exception as error:
            return dataclasses.asdict(AttachAnswer(error=f"{type(error).__name__}: {error}"))

    def ckpt_transport_detach(self) -> dict[str, str]:
        """Stop being updatable."""
        for sink in _sinks(self).values():
            sink.close()
        _sinks(self).clear()
        return dataclasses.asdict(AttachAnswer())

    def ckpt_transport_checksums(self, draft: bool = False) -> dict[str, str]:
        """A checksum of every parameter, of prepacked ones through what they compute; see :func:`checksums`."""
        try:
            return checksums(_target(self, draft).model)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}


def _sinks(worker: Any) -> dict[bool, Sink]:
    """The sinks of a worker: of the model that is served (False) and of the draft model (True)."""
    sinks: dict[bool, Sink] = worker.__dict__.setdefault("_ckpt_transport_sinks", {})
    return sinks


def _attach(worker: Any, host: str, engine: str, version: str, draft: bool) -> AttachAnswer:
    check_version(installed_version())
    check_features()
    check_parallel(worker.vllm_config.parallel_config)
    check_quantization(_target(worker, draft), installed_version())
    sinks = _sinks(worker)

    def make_engine(draft: bool) -> VllmEngine:
        return VllmEngine(
            lambda: _target(worker, draft),
            WorkerGate(worker),
            lambda: reset_worker(worker),
            f"{engine or os.getppid()}{'#draft' if draft else ''}",
            f"vLLM rank {worker.rank}{' (draft model)' if draft else ''} in process {os.getpid()}",
            verify_always=Config.load().verify_apply == "always",
        )

    keeper = next(iter(sinks), draft)
    for each in dict.fromkeys((keeper, draft)):
        before = sinks.get(each)
        sinks[each] = listen(before, host, version, functools.partial(make_engine, each))
        if sinks[each] is not before:
            Finalize(None, sinks[each].close, exitpriority=10)
    sink = sinks[draft]
    return AttachAnswer("", sink.address, sink.label, sink.version, sink.tainted, sinks[keeper].address)


def _target(worker: Any, draft: bool) -> UpdatedModel:
    config = worker.vllm_config
    if not draft:
        return UpdatedModel(worker.model_runner.get_model(), config.model_config, config)
    find = getattr(worker.model_runner, "get_draft_model", None)
    drafter = getattr(worker.model_runner, "drafter", None)
    model = getattr(drafter, "model", None) if find is None else find()
    if model is None or config.speculative_config is None or config.speculative_config.draft_model_config is None:
        raise ConfigError("this engine has no draft model with weights of its own; see vLLM's --speculative-config")
    return UpdatedModel(model, config.speculative_config.draft_model_config, config)


def check_parallel(parallel_config: Any) -> None:
    """Refuse engines whose layout over ranks cannot be updated.

    Raises:
        ConfigError: experts move between ranks while the engine runs, so weights would land on the wrong ones.
    """
    if getattr(parallel_config, "enable_eplb", False):
        raise ConfigError(
            "an engine with expert load balancing (--enable-eplb) cannot be updated: experts have moved, and new "
            "weights would land on the wrong ones; start it without"
        )


def reset_worker(worker: Any) -> None:
    """Forget what the worker has computed or derived from old weights."""
    for name in ("reset_lora_state", "reset_encoder_cache", "reset_mm_cache"):
        reset = getattr(worker.model_runner, name, None)
        if reset is not None:
            reset()
