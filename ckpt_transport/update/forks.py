"""A child after a fork has things of its parent that it must not destroy."""

from __future__ import annotations

import ctypes
import os
from weakref import WeakSet

_parents: WeakSet[object] = WeakSet()


def leave_to_parent(thing: object) -> None:
    """Never destroy ``thing``, nor what it refers to, in a child after a fork.

    The libraries behind transports wait in their destructors for threads that a child does not have, and say farewell
    on connections that are the parent's. So a child that exits would hang, or harm its parent.
    """
    _parents.add(thing)


def _keep() -> None:
    for thing in _parents:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


os.register_at_fork(after_in_child=_keep)
