"""Imports what a vLLM server and its workers import, and begins nothing; see :mod:`tests.vllm.forked`."""

import importlib
import os

from tests.support.vllm_server import ENVIRONMENT

MODULES = (
    *(f"vllm.entrypoints.cli.{name}" for name in ("benchmark.main", "collect_env", "download_kernels", "launch")),
    *(f"vllm.entrypoints.cli.{name}" for name in ("main", "openai", "preload", "run_batch", "serve", "snapshot")),
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "ckpt_transport_vllm.extension",
    "tests.vllm.source",
)

os.environ.update(ENVIRONMENT)  # some of it is read on import
for name in MODULES:
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(f"{name} cannot be imported") from error  # multiprocessing would pass over an ImportError
