"""A vLLM in this process sleeps: it takes no update while its weights have no memory, and one when they are awake.

Usage: ``python -m tests.vllm.sleeping``, on a GPU: vLLM for CPUs gives no memory back.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from tests.support import tiny_models
from tests.support.vllm_server import ENVIRONMENT
from tests.vllm.in_process import Engine, compare
from tests.vllm.source import Source

SLEEPS = {"enable_sleep_mode": True, "gpu_memory_utilization": 0.3}


def main() -> None:
    """Update a vLLM that sleeps at level 1, and one at level 2."""
    os.environ.update(ENVIRONMENT)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_ARGUMENTS"] = json.dumps(json.loads(os.environ.get("VLLM_ARGUMENTS", "{}")) | SLEEPS)
    with tempfile.TemporaryDirectory() as folder:
        directories = {f"v{seed}": Path(folder) / f"v{seed}" for seed in (1, 2)}
        for seed, directory in enumerate(directories.values(), 1):
            tiny_models.write(directory, seed, "qwen3")
        engine = Engine(directories["v1"])
        expected = {"v1": engine.answers()}
        with Source({"transport": "shm", "commit": "in_place"}, directories, engine.sink()) as source:
            source.update("v2")
            expected["v2"] = engine.answers()
            assert expected["v1"] != expected["v2"]
            for level, version in ((1, "v1"), (2, "v2")):
                engine.llm.sleep(level=level)
                said = source.refusal(version)
                assert "sleeps, and its weights have no memory" in said, said
                engine.llm.wake_up(tags=["weights"])
                source.update(version)
                engine.llm.wake_up(tags=["kv_cache"])
                compare(engine.answers(), expected[version])
                print(f"level {level}: refused asleep, updated awake", flush=True)


if __name__ == "__main__":
    main()
