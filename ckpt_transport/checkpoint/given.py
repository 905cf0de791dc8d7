"""This module checks what is given as the tensors of a version, whether it is registered, lent, held or made FP8."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from operator import attrgetter

import torch

from ckpt_transport.errors import CheckpointError

EXTRA_STATE = "_extra_state"
"""Last part of the names under which ``state_dict`` keeps what modules return from ``get_extra_state``."""

_traits = attrgetter("layout", "is_meta", "is_nested", "is_quantized")
_PLAIN = (torch.strided, False, False, False)
OWN_KINDS = frozenset({torch.Tensor, torch.nn.Parameter})
"""Classes whose tensors have their bytes where torch's own have them."""


def given_tensors(tensors: object) -> dict[str, torch.Tensor]:
    """The tensors of a mapping, by name, in its order; each is plain: strided, with memory of its own kind.

    What modules keep under ``_extra_state`` and is no tensor is left out, as ``attach`` leaves it out.

    Raises:
        CheckpointError: it is no mapping, a name is no string, or a value is no plain tensor; names it, and says what
            to give instead.
    """
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"tensors are to be a mapping from names to tensors, {_instead_of(tensors)}")
    found: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        check_name(name)
        if isinstance(value, torch.Tensor):
            check_plain(name, value)
            found[name] = value
        elif name.rpartition(".")[2] != EXTRA_STATE:
            raise CheckpointError(f"'{name}' is {what(value)}")
    return found


def check_name(name: object) -> None:
    """
    Raises:
        CheckpointError: it is no string of Unicode text.
    """
    if not isinstance(name, str):
        raise CheckpointError(f"tensor {name!r} has a name of type {type(name).__name__}; give a string")
    if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
        raise CheckpointError(f"tensor {name!r} has a name that is not Unicode text; rename it")


def same_tensors(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[str, ...], ...]:
    """Names under which the same elements were given, as tied weights are by ``state_dict()``."""
    by_address: defaultdict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        by_address[tensor.data_ptr()].append(name)
    found: defaultdict[object, list[str]] = defaultdict(list)
    for names in by_address.values():
        for name in names if len(names) > 1 else ():
            tensor = tensors[name]
            elements = tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg()
            found[tensor.data_ptr(), elements].append(name)
    return tuple(tuple(names) for names in found.values() if len(names) > 1)


def check_plain(name: str, tensor: torch.Tensor) -> None:
    """Check that a tensor has its bytes where a plain one has them.

    Raises:
        CheckpointError: its bytes are not where a plain tensor has them.
    """
    if type(tensor) not in OWN_KINDS:
        _check_kind(name, tensor)
    if _traits(tensor) != _PLAIN:
        raise CheckpointError(f"tensor '{name}' {_not_plain(tensor)}")
    if torch._is_functional_tensor(tensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise CheckpointError(f"tensor '{name}' belongs to a function transform; give it outside of torch.func")
    if not tensor.untyped_storage().nbytes() and tensor.numel():
        raise CheckpointError(f"tensor '{name}' has no memory any more: its storage was freed; gather it first")


def _check_kind(name: str, tensor: torch.Tensor) -> None:
    kind = type(tensor)
    if hasattr(kind, "full_tensor"):
        raise CheckpointError(
            f"tensor '{name}' is a {kind.__name__}, of which this rank has a part; call full_tensor() on all ranks and "
            "give what it returns"
        )
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise CheckpointError(
            f"tensor '{name}' is a {kind.__name__}, which keeps its bytes in its own way; give a plain tensor (as by "
            "dequantize(), or materialize it first)"
        )
    if torch.nn.parameter.is_lazy(tensor):
        raise CheckpointError(f"tensor '{name}' is not initialized; run the module once, or load weights into it")


def _not_plain(tensor: torch.Tensor) -> str:
    if tensor.is_nested:
        return "is nested, of parts of several shapes; give each part under a name of its own"
    if tensor.is_quantized:
        return f"is quantized to {tensor.dtype}; give dequantize() of it"
    if tensor.layout is not torch.strided:
        return f"is {tensor.layout}; make it dense first, as by to_dense()"
    return "is on the meta device and has no bytes; materialize it first"


def what(value: object) -> str:
    """What stands in the place of a tensor, and what to give instead."""
    kind = type(value)
    if value is None:
        return "None and not a tensor; leave it out"
    if isinstance(value, Mapping):
        return f"a {kind.__name__} and not a tensor; flatten it, with names joined by dots"
    if kind.__module__.partition(".")[0] == "numpy":
        return f"of type numpy.{kind.__name__} and not a tensor; give torch.from_numpy(...) of an array"
    return f"of type {kind.__name__} and not a tensor; give a torch.Tensor, or leave it out"


def _instead_of(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, torch.nn.Module):
        return f"not a module; give state_dict() of {kind}"
    if isinstance(value, Iterable):
        return (
            f"not a {kind}; give dict(...) of its pairs, as dict(module.named_parameters()); only register and publish "
            "take pairs as they come"
        )
    return f"not a {kind}"
