"""Watches a loader's operations on fake tensors and notes what they do. Nothing it notes is carried out.

A loader is Python that cuts, joins and copies tensors, so all it does to them passes through torch's dispatcher
(:class:`torch.utils._python_dispatch.TorchDispatchMode`). Views need no note: any tensor's memory, offset and strides
say what it is a view of. Copies into a target are noted, and so are operations that make or change tensors on the way;
their results are on the ``meta`` device. What an operation makes that is on no list is *opaque*: it does no harm until
it is written to a target, or a value is read out of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ckpt_transport.memory.byte_ranges import EqualRanges, TooFineError, missing_of, union
from ckpt_transport.replay.arguments import encode
from ckpt_transport.replay.fake_tensors import FakeTensors
from ckpt_transport.replay.layout import Copy, Fill, Operation, Owner, OwnerKind, Ref
from ckpt_transport.replay.memory_map import MemoryMap, Targets, ranges_at, storage_key

aten = torch.ops.aten

MAKES = frozenset(
    op
    for packet in (
        aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.zeros,
        aten.zeros_like, aten.new_zeros, aten.ones, aten.ones_like, aten.new_ones, aten.full, aten.full_like,
        aten.new_full, aten.arange, aten.eye, aten._to_copy, aten.clone, aten.cat, aten.stack, aten.flip, aten.roll,
        aten.repeat, aten.constant_pad_nd, aten.index_select, aten.amax, aten.amin,
    )
    for op in (getattr(packet, name) for name in packet.overloads())  # type: ignore[no-untyped-call]
)  # fmt: skip
"""Operations that make a new tensor, the same bits each time from the same bits; element-wise ones are known by tag."""

WRITES = frozenset({aten.copy_.default, aten.fill_.Scalar, aten.zero_.default})

Event = Copy | Fill | Operation


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One recording.

    Attributes:
        events: what the loader did, in order.
        refused: sources and targets that something was done with which is not understood, with the first reason.
        used: sources that were seen to be used.
        origins: for each result, the sources it comes from.
        rewritten: targets that operations read and write again.
        guards: tensors whose values the loader looked at, and that belong to nobody.
        written: targets that were written, or may have been.
        stray_writes: memory that is not the module's and that sources were written to: its key, and these sources.
    """

    def __init__(self, fake_tensors: FakeTensors, targets: Targets) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self.refused: dict[Owner, str] = {}
        self.used: set[int] = set()
        self.origins: list[frozenset[int]] = []
        self.rewritten: set[int] = set()
        self.guards: list[torch.Tensor] = []
        self.written: set[int] = set()
        self.stray_writes: list[tuple[int, frozenset[int]]] = []
        self._opaque: dict[int, str] = {}
        self._targets = targets
        self.memory = MemoryMap(fake_tensors, targets)
        self._dispatch = _not_compiled(type(self)._see)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block a loader runs."""
        with self:
            yield

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would import its compiler at the first operation, to say that this class is not compiled."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._dispatch(self, func, args, kwargs or {})

    def _see(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is aten.copy_.default:
            return self._copy(*args)
        if func.is_view:
            return func(*args, **kwargs)
        if func._schema.is_mutable or func.namespace not in ("aten", "prims", "prim"):
            return self._write(func, args, kwargs)
        if torch.Tag.data_dependent_output in func.tags:
            self._look(func, args, kwargs)
            return func(*_zeros_for_meta(args), **_zeros_for_meta(kwargs))
        return self._compute(func, args, kwargs)

    # -- what operations do ---------------------------------------------------------------------------------------

    def _copy(self, written: torch.Tensor, read: torch.Tensor, *_: Any) -> torch.Tensor:
        to, of = self.memory.owner(written), self.memory.owner(read)
        if to is None or to.kind is not OwnerKind.TARGET or of is None or of.kind is not OwnerKind.SOURCE:
            result: torch.Tensor = self._write(aten.copy_.default, (written, read), {})
            return result
        if read.is_conj() or read.is_neg() or written.is_conj() or written.is_neg():
            self.written.add(to.index)
            self._refuse("is copied from a lazily conjugated or negated view", to, of)
            return written
        read = read.expand(written.shape)
        self.used.add(of.index)
        self.events.append(Copy(self.memory.ref(read, of), self.memory.ref(written, to)))
        return written

    def _write(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation that writes arguments: note it if it writes its first argument only, and is understood."""
        if torch.Tag.inplace_view in func.tags and func.__name__.split(".")[0] not in ("set_", "resize_"):
            return func(*args, **kwargs)
        owned = self._owners(tensors_in(args, kwargs))
        if not owned:
            return func(*args, **kwargs)
        name = str(func)
        written = args[0] if args and isinstance(args[0], torch.Tensor) else None
        to = None if written is None else self.memory.owner(written)
        returned = func._schema.returns
        if func.namespace != "aten" or len(returned) != 1 or not name.split(".")[1].endswith("_"):
            self.written |= {owner.index for owner in owned if owner.kind is OwnerKind.TARGET}
            self._refuse(f"goes through {name}, which may write any of its arguments", *owned)
            return written
        assert written is not None
        if to is None:
            if any(owner.kind is not OwnerKind.TARGET for owner in owned):
                self.stray_writes.append((storage_key(written), self._sources(owned)))
                self._refuse("is written to a tensor that is neither a parameter nor a buffer", *owned)
            else:
                self._refuse("is read before it is loaded", *owned)
            return written
        if to.kind is OwnerKind.SOURCE:
            self._refuse(f"is overwritten by the loader itself, by {name}", *owned)
            return written
        if to.kind is OwnerKind.TARGET:
            self.written.add(to.index)
        constant = _constant(func, args, self.memory)
        if constant is not None:
            func, args, kwargs = aten.fill_.Scalar, (written, constant), {}
            if to.kind is OwnerKind.TARGET:
                self.events.append(Fill(self.memory.ref(written, to), constant))
                return written
        reason = self._reason(func, [*args[1:], *kwargs.values()])
        if func is not aten.copy_.default and func not in WRITES and not reason and to.kind is OwnerKind.TARGET:
            reason = self._reason(func, [written])
        if to.kind is OwnerKind.TARGET and reason:
            self._refuse(reason, to, *owned)
            return written
        if to.kind is OwnerKind.RESULT:
            if self._constants(owned):
                func(*args, **kwargs)
            self._derive(to.index, owned, reason)
        self._note(func, args, kwargs, ())
        return written

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = list(tensors_in(args, kwargs))
        owned = self._owners(tensors)
        if tensors and not owned:
            return func(*args, **kwargs)
        if owned and all(owner.kind is OwnerKind.TARGET for owner in owned) and not self._loaded(tensors):
            self._guard(tensors)
            return func(*args, **kwargs)
        reason = self._reason(func, [*args, *kwargs.values()])
        if self._constants(owned) and not reason:
            output = func(*args, **kwargs)
        else:
            placed = {"device": torch.device("meta")} if "device" in kwargs else {}
            output = func(*_on_meta(args), **_on_meta({**kwargs, **placed}))
        made = list(tensors_in((output,), {}))
        if all(self.memory.owner(tensor) is not None for tensor in made):
            return output
        numbers = []
        for tensor in made:
            numbers.append(self.memory.add_result(tensor))
            self.origins.append(frozenset())
            self._derive(numbers[-1], owned, reason)
        self._note(func, args, kwargs, tuple(numbers))
        return output

    def _look(self, func: Any, args: Any, kwargs: Any) -> None:
        """A value is read out of a tensor, so what the loader does next may depend on it."""
        tensors = list(tensors_in(args, kwargs))
        owned = self._owners(tensors)
        if owned and all(owner.kind is OwnerKind.TARGET for owner in owned) and not self._loaded(tensors):
            self._guard(tensors)
        elif not self._constants(owned):
            self._refuse(f"is looked at by the loader ({func}), which may then do something else", *owned)

    def _owners(self, tensors: Iterable[torch.Tensor]) -> list[Owner]:
        return [owner for tensor in tensors if (owner := self.memory.owner(tensor)) is not None]

    # -- whether it is understood -----------------------------------------------------------------------------------

    def _reason(self, func: Any, values: Any) -> str:
        """Why what ``func`` makes of ``values`` is not known to be the same each time; empty when it is."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            return f"gets random numbers from {func}"
        if torch.Tag.pointwise not in func.tags and func not in MAKES and func not in WRITES:
            return f"goes through {func}, which is not understood"
        for tensor in tensors_in(values, {}):
            owner = self.memory.owner(tensor)
            if owner is None:
                return "is made with a tensor of unknown origin"
            if owner.kind is OwnerKind.RESULT and owner.index in self._opaque:
                return self._opaque[owner.index]
            if owner.kind is OwnerKind.TARGET:
                if not self._loaded([tensor]):
                    return "is made with the old value of " + self._targets.values[owner.index].name
                self.rewritten.add(owner.index)
        return ""

    def _constants(self, owned: list[Owner]) -> bool:
        """Whether these are results that depend on nothing, so that their values are at hand."""
        return all(
            owner.kind is OwnerKind.RESULT
            and not self.origins[owner.index]
            and owner.index not in self._opaque
            and not self.memory.results[owner.index].is_meta
            for owner in owned
        )

    def _loaded(self, tensors: list[torch.Tensor]) -> bool:
        """Whether all that these views of targets show has been written in this recording."""
        for tensor in tensors:
            owner = self.memory.owner(tensor)
            if owner is None or owner.kind is not OwnerKind.TARGET:
                continue
            try:
                written = union(_written(self.events, owner.index))
                wanted = ranges_at(self.memory.ref(tensor, owner))
            except TooFineError:
                return False
            if any(missing_of(*written, start, start + wanted.nbytes) for start in wanted.starts.tolist()):
                return False
        return True

    def _derive(self, result: int, owned: list[Owner], reason: str) -> None:
        """``result`` now depends on these as well."""
        for owner in owned:
            if owner.kind is OwnerKind.RESULT:
                reason = reason or self._opaque.get(owner.index, "")
        self.origins[result] |= self._sources(owned)
        if reason:
            self._opaque.setdefault(result, reason)

    def _sources(self, owned: list[Owner]) -> frozenset[int]:
        """The sources that these are, or were made of."""
        sources = {owner.index for owner in owned if owner.kind is OwnerKind.SOURCE}
        return frozenset(sources).union(*(self.origins[each.index] for each in owned if each.kind is OwnerKind.RESULT))

    def _refuse(self, reason: str, *owners: Owner) -> None:
        for owner in owners:
            if owner.kind is OwnerKind.RESULT:
                for source in self.origins[owner.index]:
                    self.refused.setdefault(
                        Owner(OwnerKind.SOURCE, source), self._opaque.get(owner.index, "") or reason
                    )
            else:
                self.refused.setdefault(owner, reason)

    def _guard(self, tensors: list[torch.Tensor]) -> None:
        self.guards += [tensor for tensor in tensors if not tensor.is_meta]

    # -- notes ------------------------------------------------------------------------------------------------------

    def _note(self, func: Any, args: Any, kwargs: Any, results: tuple[int, ...]) -> None:
        def place(tensor: torch.Tensor) -> Ref | None:
            owner = self.memory.owner(tensor)
            if owner is None:
                return None
            if owner.kind is OwnerKind.SOURCE:
                self.used.add(owner.index)
            return self.memory.ref(tensor, owner)

        encoded = tuple(encode(value, place) for value in args)
        named = {name: encode(value, place) for name, value in kwargs.items()}
        self.events.append(Operation(func, encoded, named, results))


def _not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which torch's compiler leaves alone where it is loaded. To import it takes seconds."""
    if "torch._dynamo" not in sys.modules:
        return function
    disabled: Callable[..., Any] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return disabled


def tensors_in(args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    """Every tensor among the arguments of an operation."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value, {})


def _on_meta(values: Any) -> Any:
    """The same arguments, tensors replaced by ones of their geometry that have no memory."""

    def on_meta(one: torch.Tensor) -> torch.Tensor:
        return one if one.is_meta else torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="meta")

    return tree_map_only(torch.Tensor, on_meta, values)


def _zeros_for_meta(values: Any) -> Any:
    """The same arguments, with zeros to look at where a tensor has no memory."""

    def zeros(one: torch.Tensor) -> torch.Tensor:
        return torch.zeros((), dtype=one.dtype).expand(one.shape) if one.is_meta else one

    return tree_map_only(torch.Tensor, zeros, values)


def _constant(func: Any, args: Any, memory: MemoryMap) -> bool | int | float | None:
    """The number that an operation fills its first argument with, if it does that."""
    if func is aten.zero_.default:
        return 0
    if func not in (aten.fill_.Scalar, aten.fill_.Tensor, aten.copy_.default):
        return None
    value = args[1]
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or value.is_meta or memory.owner(value) is not None:
            return None
        value = value.item()
    return value if isinstance(value, (bool, int, float)) else None


def _written(events: list[Event], target: int) -> Iterator[EqualRanges]:
    """Ranges of bytes of a target that were written so far."""
    for event in events:
        write = event.written if isinstance(event, Operation) else event.write
        if write is not None and write.index == target:
            yield ranges_at(write)
