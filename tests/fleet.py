"""A small fleet for the tests: sinks and sources in processes of their own, with faults on order."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ckpt_transport import AddressFile, Config, Holder, ParameterServer, Sink
from ckpt_transport.update.participant import Participant
from ckpt_transport_torch import Attachment, Loader
from ckpt_transport_torch.engine import TorchEngine
from ckpt_transport_torch.loader_engine import LoaderEngine
from ckpt_transport_torch.module_engine import ModuleEngine
from tests.injection import Fault, inject_into
from tests.leftovers import started_here
from tests.patience import DEADLINE, PATIENCE, PATIENT
from tests.site import use

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.support.preloaded"])


def model(
    seed: int, layers: int = 6, width: int = 256, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> torch.nn.Module:
    """A stack of linear layers of known random weights."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(layers)]).to(device, dtype)


def weights(seed: int, **shape: Any) -> dict[str, torch.Tensor]:
    """The tensors of ``model(seed)``, by name."""
    return {name: tensor.clone() for name, tensor in model(seed, **shape).state_dict().items()}


@dataclass(frozen=True)
class SinkSpec:
    """A sink to start.

    Attributes:
        model: keyword arguments of ``make``.
        settings: of its Config.
        loader: makes a loader for the model, which takes whole tensors, as :func:`by_name`; None to do without.
        fault: what goes wrong there.
        site: of :mod:`tests.site`; empty for none.
        engine: the name that ranks of one engine share.
        make: makes the model from a seed; a function of some module, by default :func:`model`.
        prepare: called in the sink's process before anything else.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    loader: Callable[[Any], Loader] | None = None
    fault: Fault | None = None
    address: str = ""
    site: str = ""
    engine: str = ""
    make: Callable[..., torch.nn.Module] | None = None
    prepare: Callable[[], None] | None = None


def by_name(module: torch.nn.Module) -> Loader:
    """A loader that takes everything."""
    state = module.state_dict()

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            state[name].copy_(tensor)

    return load


def run_sink(spec: SinkSpec, label: str, pipe: Connection) -> None:
    """The sink's process: serve forward passes, answer questions about the weights."""
    if spec.prepare is not None:
        spec.prepare()
    use(spec.site)
    module = (spec.make or model)(1, **spec.model)
    state = module.state_dict()

    names = spec.engine, label
    engine: ModuleEngine = TorchEngine(module, *names)
    if spec.loader is not None:
        always = spec.settings.get("verify_apply") == "always"
        engine = LoaderEngine(module, spec.loader(module), *names, verify_always=always)
    inject_into(spec.fault, engine)
    sink = Sink(engine, spec.address, "v1", Config.load(**{**PATIENT, **spec.settings}))
    with Attachment(module, engine, sink) as attachment:
        sink.start()
        pipe.send(attachment.address)
        while True:
            question = pipe.recv()
            if question == "stop":
                break
            if question == "state":
                served = serve_once(module)
                tensors = {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}
                pipe.send((attachment.version, attachment.tainted, served, tensors))
    pipe.send("stopped")


def serve_once(module: torch.nn.Module) -> str:
    """Run one forward pass; the name of the error, or nothing."""
    first = next(module.parameters())
    try:
        module(torch.zeros(1, first.shape[-1], dtype=first.dtype, device=first.device))
    except Exception as error:
        return type(error).__name__
    return ""


@dataclass(frozen=True)
class State:
    """What a sink says of itself.

    Attributes:
        served: the name of the error that a forward pass raised, empty when it was served.
    """

    version: str
    tainted: str
    served: str
    tensors: dict[str, torch.Tensor]

    def holds(self, expected: Mapping[str, torch.Tensor]) -> bool:
        """Whether every weight is bit-exactly as expected."""
        return self.tensors.keys() == expected.keys() and all(
            torch.equal(self.tensors[name].contiguous().view(torch.uint8), tensor.view(torch.uint8))
            for name, tensor in expected.items()
        )


class SinkProcess:
    """One running sink."""

    def __init__(self, spec: SinkSpec, label: str) -> None:
        self.label = label
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=run_sink, args=(spec, label, theirs), daemon=True)
        self.process.start()
        started_here(self.process)
        theirs.close()
        self.address = str(self._receive())

    def state(self) -> State:
        self._pipe.send("state")
        return State(*self._receive())

    def wait_until(self, condition: Callable[[State], bool]) -> State:
        """Ask until the condition holds."""
        deadline = time.monotonic() + DEADLINE
        while not condition(state := self.state()):
            assert time.monotonic() < deadline, f"{self.label} stays at {state.version!r}, tainted {state.tainted!r}"
        return state

    def dies(self) -> bool:
        """Whether the process ends by SIGKILL, soon."""
        self.process.join(DEADLINE)
        return self.process.exitcode == -signal.SIGKILL

    def stop(self) -> None:
        stop(self.process, self._pipe)

    def _receive(self) -> Any:
        assert self._pipe.poll(DEADLINE), f"{self.label} does not answer"
        return self._pipe.recv()


@contextmanager
def fleet(*specs: SinkSpec) -> Iterator[list[SinkProcess]]:
    """Sinks that run until the block ends."""
    sinks: list[SinkProcess] = []
    try:
        for number, spec in enumerate(specs):
            sinks.append(SinkProcess(spec, f"sink {number}"))
        yield sinks
    finally:
        for sink in sinks:
            sink.stop()


@dataclass(frozen=True)
class HolderSpec:
    """A holder to start; attributes as of :class:`SinkSpec`, and the seed of its weights."""

    seed: int = 2
    model: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    fault: Fault | None = None
    site: str = ""
    address: str = ""
    version: str = ""


def run_holder(spec: HolderSpec, pipe: Connection) -> None:
    """The holder's process."""
    use(spec.site)
    inject_into(spec.fault, Participant)
    config = Config.load(**{**PATIENT, **spec.settings})
    tensors = weights(spec.seed, **spec.model)
    with Holder(spec.version or f"v{spec.seed}", tensors=tensors, address=spec.address, config=config) as holder:
        holder.start()
        pipe.send(holder.address_file)
        while pipe.recv() != "stop":
            pass
    pipe.send("stopped")


class HolderProcess:
    """One running holder."""

    def __init__(self, spec: HolderSpec) -> None:
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=run_holder, args=(spec, theirs), daemon=True)
        self.process.start()
        started_here(self.process)
        theirs.close()
        assert self._pipe.poll(DEADLINE), "the holder does not start"
        self.address_file: AddressFile = self._pipe.recv()
        self.address = self.address_file.holders[0].address

    def save(self, path: Path, config: Config | None = None) -> Path:
        """Its address file."""
        self.address_file.save(path, config or Config.load(**PATIENT))
        return path

    def stop(self) -> None:
        stop(self.process, self._pipe)


def stop(process: Any, pipe: Connection) -> None:
    """End a process of ours: politely, then not."""
    with suppress(OSError, EOFError):
        pipe.send("stop")
        pipe.poll(PATIENCE)
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
    pipe.close()


@contextmanager
def holders(*specs: HolderSpec) -> Iterator[list[HolderProcess]]:
    """Holders that run until the block ends."""
    running: list[HolderProcess] = []
    try:
        running.extend(HolderProcess(spec) for spec in specs)
        yield running
    finally:
        for holder in running:
            holder.stop()


class Meter:
    """Watches what a source has sent, so that a fault can strike there."""

    def sent(self, done: int, total: int) -> None:
        assert done <= total
        if done == total:
            self.sent_all()

    def sent_all(self) -> None:
        """Every bucket has gone."""


def run_source(
    settings: Mapping[str, Any],
    sinks: Sequence[str],
    seed: int,
    rank: int,
    world_size: int,
    fault: Fault | None,
    shape: Mapping[str, Any],
    gpu: int,
    ranks: Sequence[int] | None,
    prepare: Callable[[], None] | None,
    pipe: Connection,
) -> None:
    """A source's process: register, update once, report."""
    if prepare is not None:
        prepare()
    if torch.cuda.is_available():
        torch.cuda.set_device(gpu)
    meter = Meter()
    inject_into(fault, meter)
    tensors = weights(seed, **shape)
    own = dict(list(tensors.items())[rank::world_size])
    with ParameterServer(Config.load(**{**PATIENT, **settings}), rank=rank, world_size=world_size) as server:
        server.register(f"v{seed}", tensors=own)
        try:
            update = server.update if ranks is None else partial(server.update_p2p, ranks=ranks)
            report = update(f"v{seed}", sinks, progress=lambda done, total: meter.sent(done, total))
            pipe.send(f"lost: {', '.join(report.lost)}" if report is not None and report.lost else "")
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


class SourceProcess:
    """A source that runs one update in a process of its own."""

    def __init__(
        self,
        sinks: Sequence[str],
        *,
        settings: Mapping[str, Any] | None = None,
        seed: int = 2,
        rank: int = 0,
        world_size: int = 1,
        fault: Fault | None = None,
        shape: Mapping[str, Any] | None = None,
        gpu: int = 0,
        ranks: Sequence[int] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._pipe, theirs = context.Pipe()
        arguments = (settings or {}, sinks, seed, rank, world_size, fault, shape or {}, gpu, ranks, prepare, theirs)
        self.process = context.Process(target=run_source, args=arguments, daemon=True)
        self.process.start()
        started_here(self.process)
        theirs.close()

    def outcome(self) -> str:
        """The error of the update, empty when it was committed by all; ``killed`` when the process died."""
        try:
            assert self._pipe.poll(DEADLINE), "the source does not end"
            return str(self._pipe.recv())
        except EOFError:
            return "killed"
        finally:
            self.process.join(DEADLINE)
            self._pipe.close()
