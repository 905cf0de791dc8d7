"""Finds out how much memory is free, and how much of it an update may take where nobody has said."""

from __future__ import annotations

from pathlib import Path

import torch

LEAST = 512 << 20
"""An update may take as much wherever it runs: slots of the default size, twice."""
CPU = torch.device("cpu")
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def default_budget(device: torch.device = CPU) -> int:
    """Half of the bytes that are free now on this host and, for one that is a GPU, on ``device``; 512 MiB at least."""
    free = free_on_host()
    if device.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])
    return max(free // 2, LEAST)


def free_on(device: torch.device) -> int:
    """Bytes that are free now on a device: those of a GPU, and what torch keeps of it for its next tensors."""
    if device.type != "cuda":
        return free_on_host()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def free_on_host(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes that this process could still be given: by the kernel, and by its control group where that has a limit."""
    free = 1024 * _table(proc / "meminfo").get("MemAvailable:", 0)
    group = _control_group(proc / "self/cgroup", cgroups)
    try:
        most, used = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
    except (OSError, ValueError):  # there is no group, or its limit is "max"
        return free
    return min(free, max(most - used + _table(group / "memory.stat").get("inactive_file", 0), 0))


def _control_group(membership: Path, cgroups: Path) -> Path:
    try:
        path = next(line[3:] for line in membership.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return cgroups
    group = cgroups / path.lstrip("/")
    return group if group.is_dir() else cgroups


def _table(file: Path) -> dict[str, int]:
    """The numbers of a file of the kernel, by the word before each; none where it cannot be read."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
