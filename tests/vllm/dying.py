"""A plugin of vLLM's, for tests: a worker that is named in a file is killed while it applies an update.

So a fault strikes where it belongs and at the same place each time, whatever the source has sent by then.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from ckpt_transport.engine import LoadedBucket
    from ckpt_transport.memory import Fence

ORDER = "TESTS_VLLM_DYING"
"""Where the file is that says who dies."""


def environment(folder: Path) -> dict[str, str]:
    """Variables by which all processes of a vLLM find this plugin, and the order in ``folder``."""
    described = folder / "plugin" / "dying-0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: dying\nVersion: 0\n")
    (described / "entry_points.txt").write_text(f"[vllm.general_plugins]\ndying = {__name__}:register\n")
    paths = [str(described.parent), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), ORDER: str(folder / "order")}


def order(folder: Path, victim: psutil.Process, bucket: int) -> None:
    """Have ``victim`` killed when it is to load its bucket of that number, counted from 1, from now on."""
    (folder / "order").write_text(f"{victim.pid} {bucket}")


def register() -> None:
    """Called by vLLM in each of its processes."""
    from ckpt_transport_vllm.engine import VllmEngine

    load, ordered, loaded = VllmEngine.load, Path(os.environ[ORDER]), 0

    def load_or_die(engine: VllmEngine, pieces: LoadedBucket) -> Fence | None:
        nonlocal loaded
        if ordered.exists():
            victim, bucket = map(int, ordered.read_text().split())
            loaded += 1
            if (victim, bucket) == (os.getpid(), loaded):
                os.kill(victim, signal.SIGKILL)
        return load(engine, pieces)

    VllmEngine.load = load_or_die  # type: ignore[assignment, method-assign]
