"""The scenes: a vLLM that serves is updated, twice, and compared with one that loaded the weights from disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from ckpt_transport import CkptTransportError, Config, ParameterServer
from ckpt_transport_vllm.fleet import VllmFleet
from examples.shared import phases
from examples.shared.clients import Clients
from examples.shared.display import Display, milliseconds
from examples.vllm.completions import PROMPTS, Weights, ask
from tests.support.serving import ServeError
from tests.support.vllm_server import Serve

FAMILY, HIDDEN, LAYERS = "qwen3", 512, 4
SEEDS = {"v1": 1, "v2": 2}
BUCKET_BYTES = 2 << 20
ENOUGH_REQUESTS = 24
END_SECONDS = 5.0
"""For how long a server that failed may still be seen running."""


class Result(NamedTuple):
    """What was not as promised, and what is to be said when everything was."""

    problems: tuple[str, ...]
    verdict: str = "Both updates gave what loading from disk gives, and no request failed."


def play(display: Display, folder: Path) -> Result:
    """Show an update to each of two versions.

    Raises:
        CkptTransportError: an update failed.
        ServeError, httpx.HTTPError: vLLM failed.
    """
    display.heading("Two versions of a model, and what a vLLM says that loads v2 from disk")
    _write(display, folder)
    with _serve(display, folder, "v2") as server:
        v2 = Weights.of(server)
    display.line(f"{len(v2.checksums)} checksums of its parameters and {len(v2.tokens)} completions are kept")
    display.heading("A vLLM that loads v1, and is updated")
    with _serve(display, folder, "v1") as server:
        v1 = Weights.of(server)
        problems = _update(display, folder, server, ("v1", v1), ("v2", v2), "shm")
        problems += _update(display, folder, server, ("v2", v2), ("v1", v1), "gloo")
    return Result(tuple(problems))


def _write(display: Display, folder: Path) -> None:
    """Write both checkpoints, in a process that ends: what writes them is large."""
    log = folder / "write.log"
    command = [sys.executable, "-m", "tests.support.tiny_models", str(folder)]
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
def _serve(display: Display, folder: Path, version: str) -> Iterator[Serve]:
    """A server that loaded ``version`` from disk; when it ends too early, that is the error."""
    with Serve(_checkpoint(folder, version), folder / f"vllm-{version}.log") as server:
        with display.waiting(f"vLLM loads {version}"):
            server.wait()
        try:
            yield server
        except (ServeError, CkptTransportError, httpx.HTTPError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = server.process.wait(END_SECONDS)
                reason = f"{error}\nvLLM ended with status {status}, and wrote last:\n{server.last_words()}"
                raise ServeError(reason) from error
            raise


def _update(
    display: Display,
    folder: Path,
    server: Serve,
    old: tuple[str, Weights],
    new: tuple[str, Weights],
    transport: str,
) -> list[str]:
    """Bring a new version to the server while clients keep it busy, and show that; what did not hold.

    Args:
        display, folder: where to print, and where the checkpoints are.
        server: serves the old version.
        old, new: name of each version, and what a server says that loaded it from disk.
        transport: the one to use.
    """
    (was, before), (version, expected) = old, new
    display.heading(f"From {was} to {version} over {transport}, under way with requests")
    config = Config.load(transport=transport, bucket_bytes=BUCKET_BYTES)
    moments: list[float] = []
    with (
        ParameterServer(config) as source,
        VllmFleet([server.url], config, pause="keep") as fleet,
        Clients(server.url, ask) as clients,
    ):
        source.register(version, directory=_checkpoint(folder, version))
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
        (served_version,) = fleet.versions()
    served, held, after = clients.served(), moments[0], Weights.of(server)
    by_phase = phases.by_phase(served, {"updating": (began, ended)})
    frozen = [each for each in served if each.start < held < each.end]

    report = done.update
    display.update(report)
    display.line(f"steps: {_times(done.steps)}")
    display.line(f"of the update: {_times(report.phases)}")
    for rank, summary in sorted(report.apply_summary.items()):
        display.line(f"{report.labels[rank]}: {summary}")
    phases.show(display, by_phase)
    display.line(
        f"requests were held for {_each(done.held.values())}, forward passes for {_each(report.paused.values())}; the "
        f"{len(frozen)} requests that were under way meanwhile waited at most "
        f"{milliseconds(max((each.longest_wait(held) for each in frozen), default=0.0))} for their next token"
    )
    display.line(
        f"These were begun by {was} and ended by {version}, as requests are frozen and then go on (keep). "
        "No forward pass sees two versions. So that no answer spans two either, pause with wait or abort."
    )
    for prompt, *tokens in zip(PROMPTS, before.tokens, after.tokens, strict=True):
        display.line(f"prompt '{prompt}'")
        display.tokens(was, tokens[0])
        display.tokens(version, tokens[1])
    different = after.differences(expected)
    display.line(
        f"{len(expected.checksums) - len(different)} of {len(expected.checksums)} checksums of parameters equal those "
        f"of a vLLM that loaded {version} from disk; {len(after.differences(before))} are not those of {was}"
    )

    problems = [*phases.problems(served, by_phase), *done.problems, *after.problems(before, expected)]
    if not frozen:
        problems.append("no request was under way when weights changed")
    if not all(done.held.values()):
        problems.append("requests were not held")
    used = {route.transport for route in report.plan.routes}
    if used != {transport}:
        problems.append(f"{' and '.join(sorted(used))} carried the update, and {transport} was asked for")
    if served_version != version:
        problems.append(f"the server names the version '{served_version}' that it serves")
    return [f"from {was} to {version}: {problem}" for problem in problems]


def _times(steps: dict[str, float]) -> str:
    return ", ".join(f"{name} {milliseconds(seconds)}" for name, seconds in steps.items())


def _each(seconds: Iterable[float]) -> str:
    return ", ".join(map(milliseconds, seconds))
