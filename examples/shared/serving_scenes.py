"""The scenes: a server is updated while it serves, and compared with one that loaded the weights from disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from ckpt_transport import CkptTransportError, Config, FleetReport, ParameterServer
from ckpt_transport.spi import Fleet
from examples.shared import phases
from examples.shared.clients import Ask, Clients, Served
from examples.shared.display import Display, milliseconds
from examples.shared.weights import PROMPTS, Weights
from tests.support.serving import ServedChild, ServeError

FAMILY, HIDDEN, LAYERS = "qwen3", 512, 4
SEEDS = {"v1": 1, "v2": 2}
BUCKET_BYTES = 2 << 20
ENOUGH_REQUESTS = 24
END_SECONDS = 5.0
"""For how long a server that failed may still be seen running."""


class Engine(NamedTuple):
    """A kind of engine.

    Attributes:
        name: of it, as people call it.
        serve: starts one that serves the checkpoint of a directory, and writes to a log.
        fleet: what drives those at some URLs, with settings and a mode of pausing.
        ask: sends it a request.
        writer: the module that writes checkpoints.
    """

    name: str
    serve: Callable[[Path, Path], ServedChild]
    fleet: Callable[[Sequence[str], Config, str], Fleet]
    ask: Ask
    writer: str


class Result(NamedTuple):
    """What was not as promised, and what is to be said when everything was."""

    problems: tuple[str, ...]
    verdict: str = "All updates gave what loading from disk gives, and no request failed."


def play(engine: Engine, display: Display, folder: Path) -> Result:
    """Show an update to each of two versions.

    Raises:
        CkptTransportError: an update failed.
        ServeError, httpx.HTTPError: the server failed.
    """
    display.heading(f"Two versions of a model, and what a server of {engine.name} says that loads v2 from disk")
    _write(engine, display, folder)
    with _serve(engine, display, folder, "v2") as server:
        v2 = Weights.of("v2", server)
    display.line(f"{len(v2.checksums)} checksums of its parameters and {len(v2.tokens)} completions are kept")
    display.heading(f"A server of {engine.name} that loads v1, and is updated")
    with _serve(engine, display, folder, "v1") as server:
        v1 = Weights.of("v1", server)
        problems = _switch(engine, display, folder, server, v1, v2, "shm")
        problems += _switch(engine, display, folder, server, v2, v1, "gloo")
        problems += _in_place_and_staged(engine, display, folder, server, v1, v2)
    return Result(tuple(problems))


def _write(engine: Engine, display: Display, folder: Path) -> None:
    """Write both checkpoints, in a process that ends: what writes them is large."""
    log = folder / "write.log"
    command = [sys.executable, "-m", engine.writer, str(folder)]
    command += [f"--family={FAMILY}", f"--hidden={HIDDEN}", f"--layers={LAYERS}"]
    command += [f"--seed={seed}" for seed in SEEDS.values()]
    with (
        display.waiting("writing v1 and v2"),
        log.open("wb") as output,
        tempfile.TemporaryDirectory(prefix="ckpt-transport-demo-") as scratch,
    ):
        environment = {**os.environ, "TMPDIR": scratch}
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment).returncode
    if status:
        raise ServeError(f"the checkpoints could not be written:\n{log.read_text(errors='replace')[-2000:]}")


def _checkpoint(folder: Path, version: str) -> Path:
    return folder / f"{FAMILY}-{SEEDS[version]}"


@contextmanager
def _serve(engine: Engine, display: Display, folder: Path, version: str) -> Iterator[ServedChild]:
    """A server that loaded ``version`` from disk; when it ends too early, that is the error."""
    with engine.serve(_checkpoint(folder, version), folder / f"server-{version}.log") as server:
        with display.waiting(f"{engine.name} loads {version}"):
            server.wait()
        try:
            yield server
        except (ServeError, CkptTransportError, httpx.HTTPError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = server.process.wait(END_SECONDS)
                reason = f"{error}\n{engine.name} ended with status {status}, and wrote last:\n{server.last_words()}"
                raise ServeError(reason) from error
            raise


class Updated(NamedTuple):
    """An update, and what was seen of it.

    Attributes:
        done: what the fleet reports.
        named: the version that the server names afterwards.
        served: the clients' completions.
        began, held, ended: of the update, on the monotonic clock; ``held`` is when its first bytes had arrived, with
            all requests on hold.
    """

    done: FleetReport
    named: str
    served: list[Served]
    began: float
    held: float
    ended: float

    def frozen(self) -> list[Served]:
        """The completions that were under way while requests were held."""
        return [each for each in self.served if each.start < self.held < each.end]

    def longest_gap(self) -> float:
        """Seconds that a client waited for its next token, at most, among those that were served meanwhile."""
        meanwhile = [each for each in self.served if each.start < self.ended and each.end > self.began]
        return max((each.longest_wait() for each in meanwhile), default=0.0)


def _update(
    engine: Engine,
    display: Display,
    server: ServedChild,
    checkpoint: Path,
    version: str,
    transport: str,
    commit: str = "in_place",
) -> Updated:
    """Bring a version to the server while clients keep it busy."""
    config = Config.load(transport=transport, bucket_bytes=BUCKET_BYTES, commit=commit)
    moments: list[float] = []
    with (
        ParameterServer(config) as source,
        closing(engine.fleet([server.url], config, "keep")) as fleet,
        Clients(server.url, engine.ask) as clients,
    ):
        source.register(version, directory=checkpoint)
        clients.wait(ENOUGH_REQUESTS, since=0.0)
        for failure in (each.error for each in clients.served() if each.error):
            raise ServeError(f"a completion failed before the update: {failure}")
        began = time.monotonic()
        with display.progress(f"update to {version}") as progress:

            def follow(done: int, total: int) -> None:
                moments.append(time.monotonic())
                progress(done, total)

            done = fleet.update(source, version, follow)
        ended = time.monotonic()
        assert done is not None, "the only source leads"
        clients.wait(ENOUGH_REQUESTS, since=ended)
        (named,) = fleet.versions()
    return Updated(done, named, clients.served(), began, moments[0], ended)


def _switch(
    engine: Engine, display: Display, folder: Path, server: ServedChild, old: Weights, new: Weights, transport: str
) -> list[str]:
    """Update a server that serves the old version to the new one, show that, and say what did not hold."""
    display.heading(f"From {old.version} to {new.version} over {transport}, under way with requests")
    updated = _update(engine, display, server, _checkpoint(folder, new.version), new.version, transport)
    after, frozen, report = Weights.of(new.version, server), updated.frozen(), updated.done.update
    by_phase = phases.by_phase(updated.served, {"updating": (updated.began, updated.ended)})

    display.update(report)
    display.line(f"steps: {_times(updated.done.steps)}")
    display.line(f"of the update: {_times(report.phases)}")
    for rank, summary in sorted(report.apply_summary.items()):
        display.line(f"{report.labels[rank]}: {summary}")
    phases.show(display, by_phase)
    waited = max((each.longest_wait(updated.held) for each in frozen), default=0.0)
    display.line(
        f"requests were held for {_each(updated.done.held.values())}, forward passes for "
        f"{_each(report.paused.values())}; the {len(frozen)} requests that were under way meanwhile waited at most "
        f"{milliseconds(waited)} for their next token"
    )
    display.line(
        f"These were begun by {old.version} and ended by {new.version}, as requests are frozen and then go on (keep). "
        "No forward pass sees two versions. So that no answer spans two either, take a pause that has requests end."
    )
    for prompt, was, now in zip(PROMPTS, old.tokens, after.tokens, strict=True):
        display.line(f"prompt '{prompt}'")
        display.tokens(old.version, was)
        display.tokens(new.version, now)
    equal = len(new.checksums) - len(after.differences(new))
    display.line(
        f"{equal} of {len(new.checksums)} checksums of parameters equal those of a server that loaded {new.version} "
        f"from disk; {len(after.differences(old))} are not those of {old.version}"
    )
    problems = [*phases.problems(updated.served, by_phase), *updated.done.problems, *after.problems(old, new)]
    if not frozen:
        problems.append("no request was under way when weights changed")
    if not all(updated.done.held.values()):
        problems.append("requests were not held")
    used = {route.transport for route in report.plan.routes}
    if used != {transport}:
        problems.append(f"{' and '.join(sorted(used))} carried the update, and {transport} was asked for")
    if updated.named != new.version:
        problems.append(f"the server names the version '{updated.named}' that it serves")
    return [f"from {old.version} to {new.version}: {problem}" for problem in problems]


def _in_place_and_staged(
    engine: Engine, display: Display, folder: Path, server: ServedChild, old: Weights, new: Weights
) -> list[str]:
    """Update a server that serves the old version there in place, and back staged; say what did not hold."""
    display.heading(f"To {new.version} in place, and back to {old.version} staged: how long clients wait for a token")
    problems, rows = [], []
    for was, now, commit in ((old, new, "in_place"), (new, old, "staged")):
        updated = _update(engine, display, server, _checkpoint(folder, now.version), now.version, "shm", commit)
        report, by_phase = (
            updated.done.update,
            phases.by_phase(updated.served, {commit: (updated.began, updated.ended)}),
        )
        held = _each(report.paused.values()), _each(updated.done.held.values())
        rows.append(
            (commit.replace("_", " "), milliseconds(report.seconds), *held, milliseconds(updated.longest_gap()))
        )
        problems += [*phases.problems(updated.served, by_phase), *updated.done.problems]
        problems += Weights.of(now.version, server).problems(was, now)
        if report.staged != (commit == "staged"):
            problems.append(f"the update was to be {commit}, and was not")
    display.table(("", "took", "passes held", "requests held", "longest gap"), rows)
    display.line("The longest gap is the time that a client waited for its next token, at most.")
    return [f"in place and staged: {problem}" for problem in problems]


def _times(steps: dict[str, float]) -> str:
    return ", ".join(f"{name} {milliseconds(seconds)}" for name, seconds in steps.items())


def _each(seconds: Iterable[float]) -> str:
    return ", ".join(map(milliseconds, seconds))
