"""What a vLLM worker does for whoever updates it.

vLLM gets it by its plugin, in every engine; see ``plugin.py``. An engine that loads no plugins is given the class, by
``--worker-extension-cls ckpt_transport_vllm.WorkerExtension``.
"""

from __future__ import annotations

import functools
import logging
import os
from multiprocessing.util import Finalize
from typing import Any

from ckpt_transport import Config, ConfigError, Sink
from ckpt_transport.spi import listen, warm_up
from ckpt_transport_vllm.checksums import checksums
from ckpt_transport_vllm.engine import VllmEngine
from ckpt_transport_vllm.quiesce import WorkerGate
from ckpt_transport_vllm.replicas import engine_group, worker_label
from ckpt_transport_vllm.updated_model import UpdatedModel
from ckpt_transport_vllm.versions import check_draft, check_supported

logger = logging.getLogger(__name__)


class WorkerExtension:
    """Methods for ``collective_rpc``. Another extension class may inherit from this one, or beside it.

    Each answers with a dictionary on every rank and never raises: vLLM would take the other ranks' answers for those to
    its next call.
    """

    def ckpt_transport_attach(
        self, host: str = "", engine: str = "", version: str = "", draft: bool = False, report_to: str = ""
    ) -> dict[str, str]:
        """Make this worker updatable; once it is, say where.

        Args:
            host: where the caller runs; the sink listens on a UNIX socket when that is here. Empty for here.
            engine: a name that all workers of this engine are given, and no other's.
            version: what is served now; of use only when the worker does not know.
            draft: the draft model is meant, not the one that is served.
            report_to: the mailbox that also hears where the sink is, as answers get lost of other data-parallel
                replicas than the first; none when empty.

        Returns: the ``address`` of the sink, its ``label``, its ``version`` (empty when nobody has said), why it is
            ``tainted`` (empty when it is not), and the ``keeper``, at which the engine is claimed, be it for the model
            that is served or for its draft model. ``error`` is empty, or alone, and says why there is no sink.
        """
        try:
            return _attach(self, host, engine, version, draft, report_to)
        except Exception as error:
            logger.exception("this worker is not updatable")
            return {"error": f"{type(error).__name__}: {error}"}

    def ckpt_transport_describe(self) -> dict[str, str]:
        """What a program has to know of the engine that holds no more than a handle of it.

        Returns: how many ``workers`` each of its replicas has, and whether it ``caches_prefixes`` (empty when not).
        """
        try:
            config: Any = getattr(self, "vllm_config")  # noqa: B009
            caches = "yes" if config.cache_config.enable_prefix_caching else ""
            return {"error": "", "workers": str(config.parallel_config.world_size), "caches_prefixes": caches}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def ckpt_transport_warm_up(self, draft: bool = False) -> dict[str, str]:
        """Do in the background, while requests are served, what the first update would do.

        How far that is, the sink's address is asked for. The worker must be updatable already.

        Args:
            draft: the draft model is meant, not the one that is served.
        """
        try:
            if draft not in _sinks(self):
                raise ConfigError("this worker is not updatable; call ckpt_transport_attach before")
            warm_up(_sinks(self)[draft], _target(self, draft).expects())
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {"error": ""}

    def ckpt_transport_detach(self) -> dict[str, str]:
        """Stop being updatable."""
        for sink in _sinks(self).values():
            sink.close()
        _sinks(self).clear()
        return {"error": ""}

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


def _attach(worker: Any, host: str, engine: str, version: str, draft: bool, report_to: str) -> dict[str, str]:
    check_supported(lambda: _target(worker, draft))
    sinks = _sinks(worker)

    def make_engine(draft: bool) -> VllmEngine:
        kind, worker_name = "#draft" if draft else "", worker_label(worker.rank, worker.vllm_config)
        return VllmEngine(
            lambda: _target(worker, draft),
            WorkerGate(worker),
            lambda: reset_worker(worker),
            f"{engine_group(engine or str(os.getppid()), worker.vllm_config)}{kind}",
            f"{worker_name}{' (draft model)' if draft else ''} in process {os.getpid()}",
            verify_always=Config.load().verify_apply == "always",
        )

    keeper = next(iter(sinks), draft)
    for each in dict.fromkeys((keeper, draft)):
        before = sinks.get(each)
        sinks[each] = listen(before, host, version, functools.partial(make_engine, each))
        if sinks[each] is not before:
            Finalize(None, sinks[each].close, exitpriority=10)
    sink = sinks[draft]
    if report_to:
        sink.announce(report_to)
    said = {"address": sink.address, "label": sink.label, "version": sink.version, "tainted": sink.tainted}
    return {"error": "", **said, "keeper": sinks[keeper].address}


def _target(worker: Any, draft: bool) -> UpdatedModel:
    config = worker.vllm_config
    if not draft:
        return UpdatedModel(worker.model_runner.get_model(), config.model_config, config)
    find = getattr(worker.model_runner, "get_draft_model", None)
    drafter = getattr(worker.model_runner, "drafter", None)
    model = getattr(drafter, "model", None) if find is None else find()
    if model is None or config.speculative_config is None or config.speculative_config.draft_model_config is None:
        raise ConfigError("this engine has no draft model with weights of its own; see vLLM's --speculative-config")
    check_draft(config.speculative_config)
    return UpdatedModel(model, config.speculative_config.draft_model_config, config)


def reset_worker(worker: Any) -> None:
    """Forget what the worker has computed or derived from old weights."""
    for name in ("reset_lora_state", "reset_encoder_cache", "reset_mm_cache"):
        reset = getattr(worker.model_runner, name, None)
        if reset is not None:
            reset()
