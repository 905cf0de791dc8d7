"""Makes a module updatable."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch

from ckpt_transport import Config, ConfigError, Gate, Sink
from ckpt_transport.spi import Loader, TensorSpec, describe, specs_of, uninterrupted
from ckpt_transport_torch.engine import TorchEngine
from ckpt_transport_torch.loader_engine import LoaderEngine
from ckpt_transport_torch.module_engine import ModuleEngine
from ckpt_transport_torch.passes import passes_through, refuse_attached


class Attachment:
    """A module that can be updated; made by :func:`attach`, ended by :meth:`close`."""

    def __init__(self, module: torch.nn.Module, engine: ModuleEngine, sink: Sink) -> None:
        self._sink, self._engine = sink, engine
        self.gate: Gate = engine.gate
        """For engines that bypass ``module(...)``: run each forward pass by ``gate.run(forward, ...)``, or in
        ``with gate.forward_pass():``."""
        self._ungate = passes_through(module, engine.gate)

    @property
    def address(self) -> str:
        """Where this sink can be invited to updates."""
        return self._sink.address

    @property
    def version(self) -> str:
        """The version that is served."""
        return self._sink.version

    @property
    def tainted(self) -> str:
        """Why the module must not serve; empty when it may."""
        return self._sink.tainted

    def close(self) -> None:
        """Stop being updatable; the module stays as it is. Idempotent."""
        self._sink.close()
        self._ungate()
        self._engine.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attach(
    module: torch.nn.Module,
    address: str = "",
    *,
    loader: Loader | None = None,
    engine: str = "",
    version: str = "",
    label: str = "",
    config: Config | None = None,
    warm: Path | Mapping[str, torch.Tensor] | None = None,
) -> Attachment:
    """Make ``module`` updatable, from a thread of its own, while it goes on serving.

    Every call of ``module(...)`` is a forward pass; an update is applied between two of them.

    Between updates the module's tensors may be moved, converted or replaced, and layers may be swapped or wrapped: they
    are looked up anew when an update begins. An update during which that happens fails. Who replaces a tensor after an
    update was committed replaces the new version's.

    A copy of the module, by ``copy.deepcopy`` or pickle, is not attached. An update counts as a write in place: torch
    refuses to compute gradients of a pass before it.

    Args:
        module: any module; it is updated in place and its parameters keep their storage.
        address: where to listen; empty for a new address that only this user can reach.
        loader: takes (name, whole tensor) pairs and copies its shard; by default tensors are copied by name, and
            names, dtypes and shapes must be exactly those of the module. It is first run on fake tensors while the
            module serves, to record what it does; where that can be replayed exactly, later updates do without it. So
            forward passes must not hang on what else it does, as on how often it was called. It must look tensors up
            when it is called and not keep those of an earlier time.
        engine: ranks of one tensor-parallel engine give the same name, and are updated before the same forward pass.
        version: what the module holds now.
        label: what to call it in messages; by default the module's class and the process id.
        config: by default from the environment.
        warm: what versions will look like; then what the first update would do is done in the background, as far as it
            can be while the module serves: a loader is recorded, kernels are compiled. A checkpoint's directory, or
            tensors by name, of which only dtypes and shapes count, so that they may be on the ``meta`` device; for a
            module that is loaded by name ``module.state_dict()``. ``ckpt-transport version`` says what became of it.

    Raises:
        CheckpointError: ``warm`` is no checkpoint, and no mapping of tensors.
        ConfigError: the address cannot be had, or a setting or an argument is wrong.
        ControlError: somebody else listens there.
        UnwritableError: a tensor of the module cannot be written in place; names it, why, and the cure.
        UsageError: the module is attached already, or a part of it, or one that it is a part of.
    """
    config = Config.given(config)
    _check_texts(engine=engine)
    if loader is not None and not callable(loader):
        raise ConfigError(f"loader is {loader!r}; give a function that takes pairs of name and tensor")

    def make(named: str) -> ModuleEngine:
        if loader is None:
            return TorchEngine(module, engine, named)
        return LoaderEngine(module, loader, engine, named, verify_always=config.verify_apply == "always")

    return attach_engine(module, make, address, version=version, label=label, config=config, warm=warm)


def attach_engine(
    module: torch.nn.Module,
    make: Callable[[str], ModuleEngine],
    address: str = "",
    *,
    version: str = "",
    label: str = "",
    config: Config | None = None,
    warm: Path | Mapping[str, torch.Tensor] | None = None,
) -> Attachment:
    """Make ``module`` updatable by an engine of its own kind; for adapters.

    Args:
        module: what is updated.
        make: makes its engine, which has the label that it is given.
        address, version, label, config, warm: as those of :func:`attach`.

    Raises: as :func:`attach`, and what ``make`` raises.
    """
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"{reprlib.repr(module)} is no torch.nn.Module; give the module that serves")
    _check_texts(address=address, version=version, label=label)
    label = label or f"{type(module).__name__} in process {os.getpid()}"
    config = Config.given(config)
    refuse_attached(module)
    specs = None if warm is None else _specs_of(warm)
    module_engine = make(label)
    made: list[Attachment] = []

    def listen() -> None:
        sink = Sink(module_engine, address, version, config)
        made.append(Attachment(module, module_engine, sink))
        if specs is not None:
            sink.warm_up(specs)
        sink.start()

    try:
        uninterrupted(listen)
        return made[0]
    except BaseException:
        for attachment in made:
            attachment.close()
        raise


def _check_texts(**given: object) -> None:
    for name, text in given.items():
        if not isinstance(text, str) or not text.isprintable():
            raise ConfigError(f"{name} is {reprlib.repr(text)}; give a text of printable characters")


def _specs_of(warm: Path | Mapping[str, torch.Tensor]) -> Sequence[TensorSpec]:
    if isinstance(warm, Mapping):
        return describe(warm)
    if not isinstance(warm, str | Path):
        raise ConfigError(f"warm is {reprlib.repr(warm)}; give tensors by name, or the directory of a checkpoint")
    return specs_of(Path(warm))
