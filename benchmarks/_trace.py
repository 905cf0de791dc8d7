"""Notes what a process's GPU does, or its cores where it has none, and adds that to the timeline of an update."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

TRACKS = {
    "kernel": "kernels",
    "gpu_memcpy": "copies",
    "gpu_memset": "copies",
    "cuda_runtime": "launches",
    "cuda_driver": "launches",
    "cpu_op": "calls of torch",
}
"""Where events of torch's profiler are shown, by their category; others are left out."""
LAUNCHES = ("Launch", "Memcpy", "Memset")
"""Parts of the names of what a process asks of its GPU; what it merely asks about it is left out."""
SHORTEST_US = 1.0
PROCESS = 1000
"""Of the process in the trace; the others are the ranks of the update."""


class Event(msgspec.Struct, frozen=True, array_like=True):
    """What one kernel, copy or call was; times are in microseconds, and start with the epoch."""

    category: str
    name: str
    start: float
    duration: float


class Profiler:
    """Torch's profiler, for all threads of this process."""

    def __init__(self) -> None:
        self._profile: Any = None

    def start(self) -> None:
        activity = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
        self._profile = profile(
            activities=[activity], experimental_config=_ExperimentalConfig(profile_all_threads=True)
        )
        self._profile.start()

    def stop(self) -> list[Event]:
        """What has happened since the start."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profile.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            self._profile.export_chrome_trace(str(path))
            exported = msgspec.json.decode(path.read_bytes())
        epoch = exported["baseTimeNanoseconds"] / 1e3
        return [
            Event(event["cat"], event["name"], epoch + event["ts"], event["dur"])
            for event in exported["traceEvents"]
            if event["ph"] == "X" and _is_shown(event)
        ]


def _is_shown(event: dict[str, Any]) -> bool:
    if TRACKS.get(event.get("cat", "")) == "launches":
        return any(part in event["name"] for part in LAUNCHES)
    return event.get("cat") in TRACKS and event["dur"] >= SHORTEST_US


def merge(path: Path, events: Sequence[Event], zero: float) -> None:
    """Add a worker's events to the file of a timeline.

    Args:
        path: of the timeline, as a report writes it.
        events: to be added.
        zero: when the timeline begins, in seconds since the epoch.
    """
    trace = msgspec.json.decode(path.read_bytes())
    first = min([zero * 1e6, *(event.start for event in events)])
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            event["ts"] += zero * 1e6 - first
    names = list(dict.fromkeys(TRACKS.values()))
    threads = {event.category: names.index(TRACKS[event.category]) for event in events}
    kind = "GPU" if "kernel" in threads else "CPU"
    trace["traceEvents"] += [
        {"ph": "M", "name": "process_name", "pid": PROCESS, "args": {"name": f"{kind} of the worker"}},
        *(
            {"ph": "M", "name": "thread_name", "pid": PROCESS, "tid": thread, "args": {"name": names[thread]}}
            for thread in sorted(set(threads.values()))
        ),
        *(
            {
                "ph": "X",
                "name": event.name,
                "cat": event.category,
                "pid": PROCESS,
                "tid": threads[event.category],
                "ts": event.start - first,
                "dur": event.duration,
            }
            for event in events
        ),
    ]
    path.write_bytes(msgspec.json.encode(trace))
