"""Runs a loader on fake tensors, and makes a layout of what it does."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from ckpt_transport.errors import RecordingError
from ckpt_transport.memory import no_collections
from ckpt_transport.planning import TensorSpec
from ckpt_transport.reasons import named_reason
from ckpt_transport.replay.bindings import Bindings
from ckpt_transport.replay.coverage import check
from ckpt_transport.replay.exclude_unsupported import exclude_unsupported, touched_by
from ckpt_transport.replay.fake_tensors import FakeTensors
from ckpt_transport.replay.layout import Copy, Layout, OpGroup, Owner, OwnerKind
from ckpt_transport.replay.memory_map import Targets, storage_key, whole_memory
from ckpt_transport.replay.op_groups import gather
from ckpt_transport.replay.recorder import Recorder
from ckpt_transport.replay.refused_writes import RefusedWrites

Loader = Callable[[Iterable[tuple[str, torch.Tensor]]], object]
"""Takes (name, whole tensor) pairs and copies what it wants of them, as the ``load_weights`` of inference engines does.

The tensors are read-only views of memory that is reused when the call returns: copy out of them, keep none of them.
Look parameters up when it is called, as by ``module.get_parameter(name)``: the module may have got others.
"""


class LoaderFailedError(RecordingError):
    """The loader raised an error on fake tensors."""


class RefusedWriteError(LoaderFailedError):
    """The loader raised an error because it may not write a tensor of the module."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Recording:
    """A layout, and what it was made from besides the loader.

    Attributes:
        layout: what the loader does.
        guards: tensors whose values the loader looked at, and what they were; others may make another layout.
        written: targets that the loader writes, or may write, by index.
        rebound: names that it binds to other tensors.
        stray_writes: memory that is not the module's and that sources are written to: its key, and these sources.
    """

    layout: Layout
    guards: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    written: frozenset[int] = frozenset()
    rebound: frozenset[str] = frozenset()
    stray_writes: tuple[tuple[int, frozenset[int]], ...] = ()

    def in_other_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor like this one, of which nothing is read: with values that the loader looked at, as far as it did."""
        form = tuple(tensor.shape), tensor.stride()
        for guard, before in self.guards:
            if storage_key(guard) == storage_key(tensor):
                known = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                return known.set_(before.untyped_storage(), tensor.storage_offset(), *form).clone()
        return torch.empty_strided(*form, dtype=tensor.dtype, device=tensor.device)


def record(
    module: torch.nn.Module, load: Loader, specs: Sequence[TensorSpec], observer: type[Recorder] = Recorder
) -> Recording:
    """Run ``load`` twice on fake tensors of the checkpoint's types and shapes, and return what it did.

    The loader sees host tensors of the right types and shapes that hold zeros. No value of a target changes, as long as
    all that the loader does goes through torch. Names that it binds to other tensors are put back.

    Args:
        module: what it loads into; may be on the ``meta`` device.
        load: the loader. For one that counts its calls, this is like two updates.
        specs: what a version brings.
        observer: what watches the loader.

    Raises:
        RecordingError: the loader failed on fake tensors, or did two different things.
    """
    with no_collections():
        first, second = _record(module, load, specs, observer), _record(module, load, specs, observer)
    if first.layout != second.layout:
        why = first.layout.why() or second.layout.why()
        raise RecordingError("the loader does not do the same each time" + (f"; {why}" if why else ""))
    return second


def _record(module: torch.nn.Module, load: Loader, specs: Sequence[TensorSpec], observer: type[Recorder]) -> Recording:
    bindings = Bindings(module)
    targets = Targets(bindings.tensors)
    fake_tensors = FakeTensors(specs)
    recorder = observer(fake_tensors, targets)
    watch = _Watch(list(fake_tensors.tensors))
    writes = RefusedWrites(recorder.memory)
    try:
        with torch.no_grad(), recorder.watching(), writes:
            load((spec.name, tensor) for spec, tensor in zip(specs, fake_tensors.tensors, strict=True))
    except Exception as error:
        why = named_reason(error)
        if writes.refused is not None:
            name = targets.values[writes.refused.index].name
            raise RefusedWriteError(f"the loader may not write {name}: {why}", name) from error
        raise LoaderFailedError(f"the loader failed on fake tensors: {why}") from error
    finally:
        changed = bindings.changed()
        bindings.put_back()
    refused = dict(recorder.refused)
    _refuse_changed(changed, targets, refused)
    for index in watch.kept():
        refused.setdefault(Owner(OwnerKind.SOURCE, index), "is kept by the loader after it has returned")
    for result in _Watch(recorder.memory.results).kept_results():
        for index in recorder.origins[result]:
            refused.setdefault(Owner(OwnerKind.SOURCE, index), "is in something that the loader keeps")
    writers = gather(recorder.events, recorder.rewritten)
    coverage = check(targets, writers, [spec.name for spec in specs])
    for target, reason in coverage.clashes.items():
        refused.setdefault(Owner(OwnerKind.TARGET, target), reason)
    written = {target for writer in writers for target in touched_by(writer)[1]}
    for guard in recorder.guards:
        owner = recorder.memory.owner(guard)
        if owner is not None and owner.kind is OwnerKind.TARGET and owner.index in written:
            refused.setdefault(owner, "is looked at by the loader before it is loaded")
    everything = Layout(
        tuple(specs),
        tuple(targets.values),
        tuple(writer for writer in writers if isinstance(writer, Copy)),
        coverage.fills,
        tuple(writer for writer in writers if isinstance(writer, OpGroup)),
        coverage.gaps,
        tuple(n for n, spec in enumerate(specs) if spec.nbytes and n not in recorder.used),
        {},
    )
    layout = exclude_unsupported(everything, refused)
    looked_at = {storage_key(tensor): tensor for tensor in recorder.guards}
    memory = [whole_memory(tensor) for tensor in looked_at.values()]
    return Recording(
        layout,
        tuple((tensor, tensor.clone()) for tensor in memory),
        frozenset(written | recorder.written),
        frozenset(changed),
        tuple(recorder.stray_writes),
    )


def _refuse_changed(changed: Sequence[str], targets: Targets, refused: dict[Owner, str]) -> None:
    index = {name: n for n, target in enumerate(targets.values) for name in (target.name, *target.also)}
    for name in changed:
        if name not in index:
            raise RecordingError(f"the loader adds {name} to the module")
        refused.setdefault(Owner(OwnerKind.TARGET, index[name]), "is bound to another tensor by the loader")


class _Watch:
    """Finds out who else holds tensors: it counts references to objects as Python does, and to memory as torch does."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors
        self._before = [self._holders(n) for n in range(len(tensors))]

    def _holders(self, index: int) -> tuple[int, int]:
        storage = self._tensors[index].untyped_storage()._cdata
        return sys.getrefcount(self._tensors[index]), torch._C._storage_Use_Count(storage)

    def kept(self) -> list[int]:
        """Tensors that have more holders than when the watch began."""
        held = [n for n, before in enumerate(self._before) if self._holders(n) > before]
        if held:
            gc.collect()
            held = [n for n in held if self._holders(n) > self._before[n]]
        return held

    def kept_results(self) -> list[int]:
        """Tensors that have holders besides the list they were given in."""
        if not self._tensors:
            return []
        alone = _Watch([torch.empty(1, device="meta")])._before[0]
        self._before = [alone] * len(self._tensors)
        return self.kept()
