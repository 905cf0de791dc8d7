"""The demonstration of joining: a fleet serves, and further engines are brought to its version, one after another.

``python -m examples.joining``, or ``make demo-join``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
import typer

from ckpt_transport import CkptTransportError, Config, Joiner
from ckpt_transport.planning import transports_of
from ckpt_transport.planning.explain import size
from ckpt_transport.update import available
from examples.live_update.result import Comparison
from examples.llama import checkpoint
from examples.llama.model import ModelConfig
from examples.llama.service import Service, ServiceError
from examples.shared import entry, latency
from examples.shared.clients import Clients, Served, Summary
from examples.shared.display import Display, milliseconds
from tests.support.transports import over_the_network

VERSION, EMPTY = "step-42", "nothing"
FLEET = 2
LEAST_JOINERS = 2
PROMPT = (11, 222, 1333, 404)
MAX_TOKENS = 12
BUCKET_BYTES = 2 << 20
ENOUGH_REQUESTS = 24
ENOUGH_TIMEOUT = 30.0
SERVE_TIMEOUT = 60.0


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """One engine that has joined.

    Attributes:
        asked, transports: the transport that was asked for, and those that were used.
        seconds: from the call until it served.
        sent: bytes that each holder has sent.
        identical: it gives the tokens that the fleet gives.
        comparison: of its parameters with the files.
    """

    asked: str
    transports: tuple[str, ...]
    seconds: float
    sent: tuple[int, ...]
    identical: bool
    comparison: Comparison


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What the demonstration found; ``problems`` is what was not as promised."""

    ok: bool
    problems: tuple[str, ...]
    joined: tuple[Joined, ...]
    before: Summary
    joining: Summary
    versions: tuple[str, ...]


class _Demo:
    """The scenes, in order."""

    def __init__(self, display: Display, folder: Path, transports: Sequence[str]) -> None:
        self._display, self._folder = display, folder
        self._transports = [*transports]
        while len(self._transports) < LEAST_JOINERS:
            self._transports.append(self._transports[-1])
        self._model = ModelConfig()

    def show(self) -> Result:
        """
        Raises:
            CkptTransportError: an engine could not join.
            ServiceError: an engine or a holder did not start.
        """
        display, full, empty = self._display, self._folder / VERSION, self._folder / EMPTY
        display.heading(f"A fleet of {FLEET}, {FLEET} holders of what it serves, and engines that hold {EMPTY} yet")
        checkpoint.write(full, self._model, seed=42)
        checkpoint.write(empty, self._model, seed=0)
        display.line(f"{VERSION}: {len(checkpoint.shapes(self._model))} tensors, {size(checkpoint.size(self._model))}")
        with ExitStack() as stack:
            fleet = [self._start(stack, full, VERSION, f"fleet-{number}") for number in range(FLEET)]
            new = [self._start(stack, empty, EMPTY, f"new-{n}") for n in range(len(self._transports))]
            for service in (*fleet, *new):
                service.wait()
            metas = [self._hold(stack, full, number) for number in range(FLEET)]
            for service in fleet:
                display.line(f"serves {VERSION}: {service.url}")
            clients = [
                stack.enter_context(Clients(service.url, vocabulary=self._model.vocab_size, threads=2))
                for service in fleet
            ]
            _wait(clients, ENOUGH_REQUESTS)
            tokens = fleet[0].generate(PROMPT, MAX_TOKENS).tokens
            display.heading("Engines join, one after another, while the fleet serves")
            began = time.monotonic()
            joined, spans = [], []
            for service, transport in zip(new, self._transports, strict=True):
                started = time.monotonic()
                joined.append(self._join(service, transport, metas, full, tokens))
                spans.append((started, started + joined[-1].seconds))
            ended = time.monotonic()
            _wait(clients, ENOUGH_REQUESTS // 2)
            served = sorted((one for each in clients for one in each.served()), key=lambda one: one.start)
            versions = tuple(worker.version for service in fleet for worker in service.inspect())
        return self._tell(served, began, ended, spans, joined, versions)

    def _start(self, stack: ExitStack, directory: Path, version: str, name: str) -> Service:
        service = Service(directory, version, self._folder / f"{name}.log", workers=1)
        stack.callback(service.close)
        return service

    def _hold(self, stack: ExitStack, directory: Path, number: int) -> Path:
        """A ``ckpt-transport serve`` as anybody would start it."""
        metas = self._folder / f"metas-{number}.json"
        command = [sys.executable, "-m", "ckpt_transport", "serve", f"--checkpoint={directory}"]
        command += [f"--version={VERSION}", f"--save-metas={metas}"]
        with (self._folder / f"holder-{number}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        deadline = time.monotonic() + SERVE_TIMEOUT
        while not metas.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServiceError(f"a holder did not start: {(self._folder / f'holder-{number}.log').read_text()}")
            time.sleep(0.05)
        return metas

    def _join(
        self, service: Service, transport: str, metas: Sequence[Path], full: Path, tokens: tuple[int, ...]
    ) -> Joined:
        joiner = Joiner(metas, Config.load(transport=transport, bucket_bytes=BUCKET_BYTES))
        report = joiner.update(VERSION, service.serving.sinks)
        owners = report.plan.manifest.owners
        sent = [sum(b.nbytes for b in report.plan.buckets if report.plan.owner(b) == owner) for owner in owners]
        joined = Joined(
            asked=transport,
            transports=tuple(dict.fromkeys(route.transport for route in report.plan.routes)),
            seconds=report.seconds,
            sent=tuple(sent),
            identical=service.generate(PROMPT, MAX_TOKENS).tokens == tokens,
            comparison=Comparison.of(service.compare(full)),
        )
        self._display.line(
            f"{service.url} joined over {'+'.join(joined.transports)} in {milliseconds(joined.seconds)}, "
            f"{' and '.join(map(size, sent))} from the holders; "
            f"its tokens are {'those of the fleet' if joined.identical else 'NOT those of the fleet'}"
        )
        return joined

    def _tell(
        self,
        served: Sequence[Served],
        began: float,
        ended: float,
        spans: Sequence[tuple[float, float]],
        joined: Sequence[Joined],
        versions: tuple[str, ...],
    ) -> Result:
        display = self._display
        before = Summary.of([request for request in served if request.end <= began])
        joining = Summary.of([request for request in served if request.start < ended and request.end > began])
        display.heading("The fleet's requests")
        display.block(latency.picture(served, spans, max(display.width - 16, 40)), "Latency, and when engines joined")
        rows = [
            [name, str(summary.requests), str(summary.failed), milliseconds(summary.longest)]
            for name, summary in (("before", before), ("while engines joined", joining))
        ]
        display.table(["", "requests", "failed", "longest"], rows)
        problems = [f"a request of the fleet failed: {request.error}" for request in served if request.error]
        problems += [f"an engine of the fleet serves {version}" for version in set(versions) - {VERSION}]
        for each in joined:
            if not each.identical:
                problems.append(f"the engine that joined over {each.asked} gives other tokens than the fleet")
            if each.comparison.mismatches or not each.comparison.elements:
                problems.append(f"the engine that joined over {each.asked} differs from the files of {VERSION}")
            if set(each.transports) - set(transports_of(each.asked)):
                problems.append(f"{each.asked} was asked for, and {', '.join(each.transports)} was used")
        if not joining.requests:
            problems.append("the fleet served no request while engines joined")
        display.heading("Result")
        for problem in problems:
            display.line(f"NOT AS PROMISED: {problem}", "bold red")
        if not problems:
            display.line(
                f"{len(joined)} engines serve {VERSION} bit by bit; the fleet was not paused, and no request failed.",
                "bold green",
            )
        return Result(
            ok=not problems,
            problems=tuple(problems),
            joined=tuple(joined),
            before=before,
            joining=joining,
            versions=versions,
        )


def _wait(clients: Sequence[Clients], more: int) -> None:
    """Until each has had so many more requests, or one has failed."""
    for each in clients:
        before = len(each.served())

        def enough(served: list[Served], wanted: int = before + more) -> bool:
            return len(served) >= wanted or any(one.error for one in served)

        each.wait(enough, ENOUGH_TIMEOUT)


def main(
    transport: Annotated[
        list[str] | None,
        typer.Option(help="Over which an engine joins; once for each engine.", show_default="all between hosts"),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write what happened to this file, for programs.")] = None,
) -> None:
    """Let engines join a fleet that serves."""
    display = Display()
    chosen = transport or over_the_network()
    try:
        for name in chosen:
            available.check(Config.load(transport=name))
        with tempfile.TemporaryDirectory(prefix="ckpt-transport-demo-") as folder:
            found = _Demo(display, Path(folder), chosen).show()
    except (CkptTransportError, ServiceError, httpx.HTTPError, OSError) as error:
        display.heading("The demonstration failed")
        display.line(f"{type(error).__name__}: {error}", "bold red")
        raise typer.Exit(1) from error
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    raise typer.Exit(0 if found.ok else 1)


if __name__ == "__main__":
    entry.run(main)
