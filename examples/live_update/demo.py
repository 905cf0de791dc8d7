"""The demonstration: weights are updated while the server generates, and everything that is promised is checked."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
import torch

from ckpt_transport import CkptTransportError, Config, ParameterServer, Report
from ckpt_transport.planning import AUTO, explain, transports_of
from ckpt_transport.transports import registry
from examples.live_update import report
from examples.live_update.result import (
    AFTER,
    BEFORE,
    Comparison,
    Requests,
    Result,
    problems_of_comparison,
    problems_of_requests,
    problems_of_workers,
)
from examples.llama import checkpoint
from examples.llama.model import Context, ModelConfig, Transformer
from examples.llama.parallel import TensorParallel
from examples.llama.service import Service, ServiceError
from examples.llama.shards import Loader
from examples.shared.clients import Clients, Served
from examples.shared.display import Display

PROMPT = (11, 222, 1333, 404)
MAX_TOKENS = 12
BUCKET_BYTES = 8 << 20
ENOUGH_REQUESTS = 20
ENOUGH_TIMEOUT = 30.0
LOGIT_TOLERANCE = 1e-3
"""How far sums in another order may move a logit; the distance to the second best token is usually far more."""
SHARED_MEMORY = Path("/dev/shm")


def run(transport: str, trace: Path, *, keep: Path | None = None, result: Path | None = None) -> int:
    """Show an update of a running model.

    Args:
        transport: a transport's name, or ``auto``.
        trace: the file to write the timeline to, for Perfetto.
        keep: the directory to leave the checkpoints and the server's log in; by default they are removed.
        result: the file to write what was found to, for programs.

    Returns: the exit status: 0 when everything held, 1 when something did not.
    """
    display = Display()
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ckpt-transport-demo-")))
        try:
            found = _Demo(display, folder, transport, trace).show()
        except (CkptTransportError, ServiceError, httpx.HTTPError, OSError) as error:
            display.heading("The demonstration failed")
            display.line(f"{type(error).__name__}: {error}", "bold red")
            return 1
        if result is not None:
            result.parent.mkdir(parents=True, exist_ok=True)
            result.write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    return 0 if found.ok else 1


class _Moments(NamedTuple):
    """When registration and update began, and when the update ended."""

    register: float
    update: float
    updated: float


class _Demo:
    """The scenes, in order."""

    def __init__(self, display: Display, folder: Path, transport: str, trace: Path) -> None:
        self._display, self._folder, self._transport, self._trace = display, folder, transport, trace
        self._model = ModelConfig()

    def show(self) -> Result:
        """
        Raises:
            CkptTransportError: the update failed.
            ServiceError: the server failed.
        """
        with ExitStack() as stack:
            config = self._configure()
            service = self._prepare(stack)
            return self._check(service, config)

    def _prepare(self, stack: ExitStack) -> Service:
        """Write both versions; start the server with the first."""
        display, old, new = self._display, self._folder / BEFORE, self._folder / AFTER
        display.heading("Two versions of a model, and a server with the first")
        checkpoint.write(old, self._model, seed=1)
        service = Service(old, BEFORE, self._folder / "server.log")
        stack.callback(service.close)
        checkpoint.write(new, self._model, seed=2)
        files = len(list(new.glob("*.safetensors")))
        tensors, mebibytes = len(checkpoint.shapes(self._model)), checkpoint.size(self._model) / 2**20
        display.line(f"wrote {BEFORE} and {AFTER}: {tensors} tensors, {mebibytes:,.1f} MiB in {files} files each")
        service.wait()
        for worker in service.inspect():
            display.line(
                f"worker {worker.rank} serves {worker.version}: {worker.parameters} fused and sharded parameters, "
                f"{worker.nbytes / 2**20:,.1f} MiB"
            )
        display.line(f"listening on {service.url}")
        return service

    def _check(self, service: Service, config: Config) -> Result:
        """Update the server, and look at everything before and after."""
        new = self._folder / AFTER
        compared_before = Comparison.of(service.compare(self._folder / BEFORE))
        tokens_before = service.generate(PROMPT, MAX_TOKENS).tokens
        done, served, moments = self._update(service, config)
        requests = Requests.of(served, *moments)
        tokens_after = service.generate(PROMPT, MAX_TOKENS).tokens
        compared_after = Comparison.of(service.compare(new))
        confirmed = _confirms(new, PROMPT, tokens_after)
        transport = "+".join(dict.fromkeys(route.transport for route in done.plan.routes))

        problems = [
            *problems_of_requests(requests, served, moments.updated),
            *problems_of_comparison(compared_before, BEFORE),
            *problems_of_comparison(compared_after, AFTER),
            *problems_of_workers(service.inspect()),
            *(f"{label} was lost" for label in done.lost),
        ]
        if self._transport not in (AUTO, transport):
            problems.append(f"{transport} carried the update, and {self._transport} was asked for")
        if tokens_after == tokens_before:
            problems.append("both versions give the same tokens")
        if not confirmed:
            problems.append(f"a model read from the files of {AFTER} gives other tokens")
        result = Result(
            ok=not problems,
            problems=tuple(problems),
            transport=transport,
            plan=explain(done.plan),
            nbytes=checkpoint.size(self._model),
            register_seconds=moments.update - moments.register,
            update_seconds=done.seconds,
            paused={done.labels[rank]: seconds for rank, seconds in done.paused.items()},
            prompt=PROMPT,
            tokens_before=tokens_before,
            tokens_after=tokens_after,
            tokens_confirmed=confirmed,
            requests=requests,
            comparison_before=compared_before,
            comparison_after=compared_after,
            events=len(done.timeline),
            trace=str(self._trace),
        )
        self._trace.parent.mkdir(parents=True, exist_ok=True)
        done.write_trace(self._trace)
        report.show(self._display, result, done.picture)
        return result

    def _update(self, service: Service, config: Config) -> tuple[Report, list[Served], _Moments]:
        """Register the new version and bring it to the workers, while clients keep them busy."""
        display = self._display
        display.heading(f"The update to {AFTER}, under way with requests")
        with ParameterServer(config) as server, Clients(service.url, vocabulary=self._model.vocab_size) as clients:
            clients.wait(lambda served: len(served) >= ENOUGH_REQUESTS or _failed(served), ENOUGH_TIMEOUT)
            register = time.monotonic()
            with display.progress(f"register {AFTER}") as progress:
                server.register(AFTER, directory=self._folder / AFTER, progress=progress)
            update = time.monotonic()
            with display.progress(f"update to {AFTER}") as progress:
                done = server.update(AFTER, service.serving.sinks, progress=progress)
            updated = time.monotonic()
            clients.wait(
                lambda served: (
                    sum(request.start >= updated for request in served) >= ENOUGH_REQUESTS or _failed(served)
                ),
                ENOUGH_TIMEOUT,
            )
        assert done is not None, "this is the only source, so it led the update"
        return done, clients.served(), _Moments(register, update, updated)

    def _configure(self) -> Config:
        """Small buckets, so that there is a pipeline to see; private memory where ``/dev/shm`` is small."""
        for name in transports_of(self._transport) if self._transport != AUTO else ():
            registry.load(name)
        pool = None
        if not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free < 2 * checkpoint.size(self._model):
            pool = "private"
            self._display.line(f"{SHARED_MEMORY} is small: {AFTER} will be kept in private memory", "yellow")
        return Config.load(transport=self._transport, bucket_bytes=BUCKET_BYTES, pool=pool)


def _failed(served: list[Served]) -> bool:
    return any(request.error for request in served)


def _confirms(directory: Path, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> bool:
    """Whether each token is the best after those before it, for a model that reads the files and is not split."""
    group = TensorParallel()
    model = Transformer(checkpoint.read_config(directory), group)
    with checkpoint.Checkpoint(directory) as files:
        Loader(model)(files.tensors())
    (logits,) = model([Context(model, [*prompt, *tokens[:-1]])])
    logits = logits[len(prompt) - 1 :]
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return bool((logits.max(dim=1).values - chosen <= LOGIT_TOLERANCE).all())
