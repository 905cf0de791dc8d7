"""What ``state_dict()`` of a module depends on besides what its names are bound to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, repeat
from operator import attrgetter, contains

import torch

METHODS = "state_dict", "_save_to_state_dict", "get_extra_state"
"""By which a class, or one module, has a say in it."""
HOOKS = "_state_dict_hooks", "_state_dict_pre_hooks"
_not_persistent = attrgetter("_non_persistent_buffers_set")


def state_depends_on(modules: Sequence[torch.nn.Module]) -> object:
    """Classes and buffers that are left out; None where a module, or a hook, has a say in what its state is."""
    kinds = list(map(type, modules))
    if not all(map(_has_no_say, set(kinds))) or any(any(map(attrgetter(hooks), modules)) for hooks in HOOKS):
        return None
    own = list(map(vars, modules))
    if any(any(map(contains, own, repeat(name))) for name in METHODS):
        return None
    left_out = list(map(_not_persistent, modules))
    return kinds, {number: frozenset(names) for number, names in compress(enumerate(left_out), left_out)}


def _has_no_say(kind: type[torch.nn.Module]) -> bool:
    return all(getattr(kind, name) is getattr(torch.nn.Module, name) for name in METHODS)
