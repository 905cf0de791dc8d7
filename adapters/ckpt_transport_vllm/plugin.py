"""What vLLM learns of this adapter, in every process that it starts; nothing is imported before it is used."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

BACKEND = "ckpt_transport"
UPDATE = "weight update"
"""What is noted at a sink between vLLM's ``start_weight_update`` and ``finish_weight_update``."""
ATTACH = "ckpt_transport_attach"
METHODS = (
    ATTACH,
    "ckpt_transport_describe",
    "ckpt_transport_warm_up",
    "ckpt_transport_detach",
    "ckpt_transport_checksums",
)
"""Of :class:`~ckpt_transport_vllm.WorkerExtension`."""


def register() -> None:
    """The entry point in ``vllm.general_plugins``."""
    register_backend()
    extend_workers()


def register_backend() -> None:
    """Register the native engine. Without effect on a vLLM that has no weight transfer engines."""
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    except ImportError:
        return
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "ckpt_transport_vllm.native", "NativeEngine")


def extend_workers() -> None:
    """Have every worker answer to the methods of the worker extension, whatever extension class it is given.

    vLLM looks a worker's methods up at a wrapper around it. It compares the names in an extension class with those of
    the worker, not of the wrapper: the class may be ours, inherit from ours, or be somebody else's.
    """
    try:
        from vllm.v1.worker.worker_base import WorkerWrapperBase
    except ImportError:
        return
    for name in METHODS:
        setattr(WorkerWrapperBase, name, _forwarded(name))


def _forwarded(name: str) -> Callable[..., Any]:
    def forwarded(wrapper: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the worker's own method of that name, or else that of the worker extension."""
        own = getattr(wrapper.worker, name, None)
        if own is None:
            from ckpt_transport_vllm.extension import WorkerExtension

            own = functools.partial(getattr(WorkerExtension, name), wrapper.worker)
        return own(*args, **kwargs)

    return forwarded
