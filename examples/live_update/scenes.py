"""The scenes: weights are updated while a server generates, and everything that is promised is checked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from ckpt_transport import Config, ParameterServer, Report
from ckpt_transport.planning import explain
from ckpt_transport.update import available
from examples.live_update.result import NEW, OLD, Result, problems_of_versions, spanning
from examples.llama import checkpoint
from examples.llama.checks import MAX_TOKENS, PROMPT, Comparison, asking, confirms
from examples.llama.model import ModelConfig
from examples.llama.service import Service
from examples.shared import phases
from examples.shared.clients import Clients, Served
from examples.shared.display import Display, mebibytes, milliseconds

BUCKET_BYTES = 8 << 20
"""Small, so that there is a pipeline to see."""
ENOUGH_REQUESTS = 20
MODEL = ModelConfig()


def play(display: Display, folder: Path, transport: str, trace: Path) -> Result:
    """Update a server while clients keep it busy.

    Args:
        display: where to print.
        folder: for the checkpoints and the server's log.
        transport: a transport's name, or ``auto``.
        trace: the file to write the timeline to, for Perfetto.

    Raises:
        CkptTransportError: there was no update.
        ServeError, httpx.HTTPError: the server failed.
    """
    config = Config.load(transport=transport, bucket_bytes=BUCKET_BYTES)
    available.check(config)
    display.heading("Two versions of a model, and a server with the first")
    checkpoint.write(folder / OLD, MODEL, seed=1)
    with closing(Service(folder / OLD, OLD, folder / "server.log")) as service:
        checkpoint.write(folder / NEW, MODEL, seed=2)
        tensors, size = len(checkpoint.shapes(MODEL)), mebibytes(checkpoint.size(MODEL))
        display.line(f"wrote {OLD} and {NEW}: {tensors} tensors, {size} each")
        service.wait()
        for worker in service.inspect():
            display.line(
                f"worker {worker.rank} serves {worker.version}: {worker.parameters} fused and sharded parameters, "
                f"{mebibytes(worker.nbytes)}"
            )
        display.line(f"listening on {service.url}")
        return _check(display, service, folder, config, trace)


class Updated(NamedTuple):
    """An update, the requests meanwhile, and when registering began, when the update did, and when it ended."""

    report: Report
    served: list[Served]
    began: float
    registered: float
    ended: float


def _update(display: Display, service: Service, new: Path, config: Config) -> Updated:
    """Bring the new version to the workers, while clients keep them busy."""
    display.heading(f"The update to {NEW}, under way with requests")
    with ParameterServer(config) as server, Clients(service.url, asking(MODEL.vocab_size), threads=6) as clients:
        clients.wait(ENOUGH_REQUESTS, since=0.0)
        began = time.monotonic()
        with display.progress(f"register {NEW}") as progress:
            server.register(NEW, directory=new, progress=progress)
        registered = time.monotonic()
        with display.progress(f"update to {NEW}") as progress:
            report = server.update(NEW, service.sinks, progress=progress)
        ended = time.monotonic()
        clients.wait(ENOUGH_REQUESTS, since=ended)
    assert report is not None, "this is the only source, so it led the update"
    return Updated(report, clients.served(), began, registered, ended)


def _check(display: Display, service: Service, folder: Path, config: Config, trace: Path) -> Result:
    """Update the server, look at everything before and after, and tell."""
    compared = [Comparison.of(OLD, service.compare(folder / OLD))]
    before = service.generate(PROMPT, MAX_TOKENS).tokens
    report, served, began, registered, ended = _update(display, service, folder / NEW, config)
    after = service.generate(PROMPT, MAX_TOKENS).tokens
    compared.append(Comparison.of(NEW, service.compare(folder / NEW)))
    confirmed = confirms(folder / NEW, PROMPT, after)
    used = "+".join(dict.fromkeys(route.transport for route in report.plan.routes))
    by_phase = phases.by_phase(served, {f"registering {NEW}": (began, registered), "updating": (registered, ended)})
    trace.parent.mkdir(parents=True, exist_ok=True)
    report.write_trace(trace)

    display.line(f"{used} was chosen")
    display.update(report)
    display.line(
        f"{mebibytes(checkpoint.size(MODEL))} registered in {milliseconds(registered - began)}, "
        f"updated in {milliseconds(report.seconds)}; trace for https://ui.perfetto.dev: {trace}"
    )
    display.heading("Tokens")
    for label, tokens in (("prompt", PROMPT), (OLD, before), (NEW, after)):
        display.tokens(label, tokens)
    if confirmed:
        display.line(f"A model that is read anew from the files of {NEW}, and not split, gives the same tokens.")
    display.heading("Requests")
    summaries = phases.show(display, by_phase)
    paused = {report.labels[rank]: seconds for rank, seconds in report.paused.items()}
    held = ", ".join(f"{label} {milliseconds(seconds)}" for label, seconds in paused.items())
    display.line(
        f"{spanning(served)} answers were begun by {OLD} and ended by {NEW}, which computes all their keys and values "
        f"anew. No forward pass sees two versions. Forward passes were held for: {held}"
    )
    display.heading("Bit-exact comparison with the files, before and after the update")
    for comparison in compared:
        display.line(str(comparison))

    problems = [
        *phases.problems(served, by_phase),
        *problems_of_versions(served, by_phase, service.inspect()),
        *_stage_and_take_back(display, service, folder, config, report),
        *(problem for comparison in compared for problem in comparison.problems()),
        *(f"{label} was lost" for label in report.lost),
    ]
    if config.transport not in ("auto", used):
        problems.append(f"{used} carried the update, and {config.transport} was asked for")
    if before == after:
        problems.append("both versions give the same tokens")
    if not confirmed:
        problems.append(f"a model read from the files of {NEW} gives other tokens")
    return Result(
        problems=tuple(problems),
        transport=used,
        plan=explain(report.plan),
        nbytes=checkpoint.size(MODEL),
        register_seconds=registered - began,
        update_seconds=report.seconds,
        paused=paused,
        tokens_before=before,
        tokens_after=after,
        requests=summaries,
        comparisons=tuple(compared),
        events=len(report.timeline),
        trace=str(trace),
    )


def _stage_and_take_back(
    display: Display, service: Service, folder: Path, config: Config, in_place: Report
) -> Iterator[str]:
    """Stage the old version beside the new one, exchange them, and go back. Yields what did not hold."""
    display.heading(f"{OLD} is staged beside {NEW} and exchanged with it, and that is taken back")
    with (
        ParameterServer(msgspec.structs.replace(config, commit="auto")) as server,
        Clients(service.url, asking(MODEL.vocab_size), threads=6) as clients,
    ):
        server.register(OLD, directory=folder / OLD)
        clients.wait(ENOUGH_REQUESTS, since=0.0)
        staged = server.update(OLD, service.sinks)
        assert staged is not None, "this is the only source, so it led the update"
        old = Comparison.of(OLD, service.compare(folder / OLD))
        rollback = server.rollback(service.sinks) if staged.staged else staged
        new = Comparison.of(NEW, service.compare(folder / NEW))
        clients.wait(ENOUGH_REQUESTS, since=time.monotonic())
    rows = [
        (what, milliseconds(each.seconds), milliseconds(max(each.paused.values(), default=0.0)))
        for what, each in (
            (f"{NEW}, in place", in_place),
            (f"{OLD}, staged", staged),
            (f"{NEW}, rolled back", rollback),
        )
    ]
    display.table(("", "took", "forward passes were held for"), rows)
    yield from (f"when staged and rolled back: {each.error}" for each in clients.served() if each.error)
    if not staged.staged:
        yield f"{OLD} was not staged: {staged.in_place}"
        return
    for comparison in (old, new):
        display.line(str(comparison))
        yield from comparison.problems()
