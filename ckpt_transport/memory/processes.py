"""Processes of one user and one container may read each other's memory, where the system allows it at all.

Source: man 2 ptrace, "Ptrace access mode checking" and "/proc/sys/kernel/yama/ptrace_scope"; man 2 prctl,
PR_SET_PTRACER and PR_GET_DUMPABLE.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

from ckpt_transport.memory.libc import libc

_PR_GET_DUMPABLE = 3
_PR_SET_PTRACER = 0x59616D61
_ANY = ctypes.c_ulong(-1)
_CAP_SYS_PTRACE = 19
_ONLY_WITH_CAPABILITY = 2
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_STATUS = Path("/proc/self/status")


def processes_in_reach() -> str:
    """Equal in processes that the same rules of the system let read each other's memory.

    The system compares users and groups, and the number of a process means another one in another namespace.
    """
    namespaces = []
    for name in ("pid", "user"):
        try:
            namespaces.append(os.readlink(f"/proc/self/ns/{name}"))
        except OSError:
            namespaces.append("")
    return "/".join([*map(str, (*os.getresuid(), *os.getresgid())), *namespaces])


def why_not_readable() -> str:
    """Why no other process may read the memory of this one, in words; empty where some may."""
    if _prctl(_PR_GET_DUMPABLE) != 1:
        return "their process is not dumpable, so the system lets no other read its memory"
    return why_not_by_policy()


@cache
def why_not_by_policy() -> str:
    """Why no process of this system may read the memory of another, in words; empty where some may."""
    try:
        scope = int(_YAMA.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return ""
    if scope < _ONLY_WITH_CAPABILITY or (scope == _ONLY_WITH_CAPABILITY and _may_trace()):
        return ""
    return f"{_YAMA} is {scope}, so processes may not read each other's memory"


def let_others_read() -> None:
    """Let processes that are not ancestors of this one read its memory, where the Yama module asks for that."""
    _prctl(_PR_SET_PTRACER, _ANY)


def _may_trace() -> bool:
    fields = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines() if ":" in line)
    return bool(int(fields["CapEff"], 16) >> _CAP_SYS_PTRACE & 1)


def _prctl(option: int, argument: ctypes.c_ulong | None = None) -> int:
    zero = ctypes.c_ulong(0)
    return int(libc().prctl(option, zero if argument is None else argument, zero, zero, zero))
