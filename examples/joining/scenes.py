"""The scenes: a fleet serves, and further engines are brought to its version, one after another."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from ckpt_transport import Config, Joiner
from ckpt_transport.update import available
from examples.joining import latency
from examples.joining.result import VERSION, Joined, Result
from examples.llama import checkpoint
from examples.llama.checks import MAX_TOKENS, PROMPT, Comparison, asking
from examples.llama.model import ModelConfig
from examples.llama.service import Service
from examples.shared import phases
from examples.shared.clients import Clients
from examples.shared.display import Display, mebibytes, milliseconds
from tests.support.serving import ServeError, last_words

EMPTY = "nothing"
FLEET = 2
BUCKET_BYTES = 2 << 20
ENOUGH_REQUESTS = 24
SERVE_TIMEOUT, STOP_TIMEOUT = 60.0, 25.0
MODEL = ModelConfig()


def play(display: Display, folder: Path, transports: Sequence[str]) -> Result:
    """Start a fleet and holders of what it serves, and let an engine join over each transport.

    Raises:
        CkptTransportError: a transport is not there, or an engine could not join.
        ServeError, httpx.HTTPError: an engine or a holder did not start, or failed.
    """
    for name in transports:
        available.check(Config.load(transport=name))
    full, empty = folder / VERSION, folder / EMPTY
    display.heading(f"A fleet of {FLEET}, {FLEET} holders of what it serves, and engines that hold {EMPTY} yet")
    checkpoint.write(full, MODEL, seed=42)
    checkpoint.write(empty, MODEL, seed=0)
    display.line(f"{VERSION}: {len(checkpoint.shapes(MODEL))} tensors, {mebibytes(checkpoint.size(MODEL))}")
    with ExitStack() as stack:

        def start(directory: Path, version: str, number: int) -> Service:
            log = folder / f"{version}-{number}.log"
            return stack.enter_context(closing(Service(directory, version, log, workers=1)))

        fleet = [start(full, VERSION, number) for number in range(FLEET)]
        new = [start(empty, EMPTY, number) for number in range(len(transports))]
        holders = [stack.enter_context(_holder(full, folder / f"holder-{number}.json")) for number in range(FLEET)]
        for service in (*fleet, *new):
            service.wait()
        for service in fleet:
            display.line(f"serves {VERSION}: {service.url}")
        ask = asking(MODEL.vocab_size)
        clients = [stack.enter_context(Clients(service.url, ask, threads=2)) for service in fleet]
        for each in clients:
            each.wait(ENOUGH_REQUESTS, since=0.0)
        tokens = fleet[0].generate(PROMPT, MAX_TOKENS).tokens
        display.heading("Engines join, one after another, while the fleet serves")
        joined: list[Joined] = []
        spans: list[tuple[float, float]] = []
        for service, transport in zip(new, transports, strict=True):
            began = time.monotonic()
            joined.append(_join(service, transport, holders, full, tokens))
            spans.append((began, began + joined[-1].seconds))
            display.line(_told(service, joined[-1]))
        ended = time.monotonic()
        for each in clients:
            each.wait(ENOUGH_REQUESTS // 2, since=ended)
        served = sorted((one for each in clients for one in each.served()), key=lambda one: one.start)
        versions = tuple(worker.version for service in fleet for worker in service.inspect())

    display.heading("The fleet's requests")
    picture = latency.picture(served, spans, max(display.width - 16, 40))
    display.block(picture, "Latency, and when engines joined")
    by_phase = phases.by_phase(served, {"while engines joined": (spans[0][0], ended)})
    summaries = phases.show(display, by_phase)
    problems = [
        *phases.problems(served, by_phase),
        *(f"an engine of the fleet serves {version}" for version in set(versions) - {VERSION}),
        *(problem for each in joined for problem in each.problems()),
    ]
    return Result(problems=tuple(problems), joined=tuple(joined), requests=summaries, versions=versions)


@contextmanager
def _holder(directory: Path, address: Path) -> Iterator[Path]:
    """A ``ckpt-transport serve`` as anybody would start it; the file that says where it is."""
    command = [sys.executable, "-m", "ckpt_transport", "serve", f"--checkpoint={directory}"]
    command += [f"--version={VERSION}", f"--save-metas={address}"]
    log = address.with_suffix(".log")
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + SERVE_TIMEOUT
            while not address.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ServeError(f"a holder did not start: {last_words(log)}")
                time.sleep(0.05)
            yield address
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT)
            process.kill()


def _join(service: Service, transport: str, holders: Sequence[Path], full: Path, tokens: tuple[int, ...]) -> Joined:
    joiner = Joiner(holders, Config.load(transport=transport, bucket_bytes=BUCKET_BYTES))
    report = joiner.update(VERSION, service.sinks)
    plan = report.plan
    sent = [sum(b.nbytes for b in plan.buckets if plan.owner(b) == owner) for owner in plan.manifest.owners]
    return Joined(
        asked=transport,
        transports=tuple(dict.fromkeys(route.transport for route in plan.routes)),
        seconds=report.seconds,
        sent=tuple(sent),
        identical=service.generate(PROMPT, MAX_TOKENS).tokens == tokens,
        comparison=Comparison.of(VERSION, service.compare(full)),
    )


def _told(service: Service, joined: Joined) -> str:
    return (
        f"{service.url} joined over {'+'.join(joined.transports)} in {milliseconds(joined.seconds)}, "
        f"{' and '.join(map(mebibytes, joined.sent))} from the holders; "
        f"its tokens are {'those of the fleet' if joined.identical else 'NOT those of the fleet'}"
    )
