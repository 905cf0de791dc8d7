"""A version is brought to running engines, and what happened is said on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from ckpt_transport.checkpoint.quantizers import quantizer_for
from ckpt_transport.cli import served
from ckpt_transport.cli.methods import UpdateMethod, steps
from ckpt_transport.cli.options import as_source
from ckpt_transport.cli.outcome import Teller, Words
from ckpt_transport.cli.output import after_commit, say_on_stderr
from ckpt_transport.cli.progress import progress
from ckpt_transport.config import Config
from ckpt_transport.errors import UpdateAbortedError
from ckpt_transport.service import ParameterServer
from ckpt_transport.service.auto import AUTO, AnyMapping, find_for, what_is_given
from ckpt_transport.service.fleet import Fleet, Updates, make_fleet
from ckpt_transport.service.subset import check_sinks, chosen
from ckpt_transport.service.trace import check_trace
from ckpt_transport.update import available
from ckpt_transport.update.mailbox import check_ways

INCOMPLETE = 4
"""Exit code: the new version stands, but not everywhere, or an engine was lost or could not be resumed."""


@dataclass(frozen=True, slots=True)
class Driven:
    """Names engines that are driven at their endpoints, and says how.

    Attributes:
        engine: the kind of engine.
        endpoints: their URLs.
        pause: what becomes of their requests.
        draft: whether their draft models are meant.
    """

    engine: str
    endpoints: tuple[str, ...]
    pause: str
    draft: bool

    def fleet(self, settings: Config) -> Fleet:
        """Make the fleet of them; raises as :func:`make_fleet`."""
        return make_fleet(self.engine, self.endpoints, settings, self.pause, self.draft)

    def sinks(self, settings: Config) -> tuple[str, ...]:
        """Ask the engines where their sinks are; raises as :meth:`fleet`, and as :meth:`Fleet.sinks`."""
        fleet = self.fleet(settings)
        try:
            return fleet.sinks()
        finally:
            fleet.close()


def bring(
    settings: Config,
    checkpoint: Path,
    version: str,
    driven: Driven | None,
    quantize_for: Path | None,
    method: UpdateMethod = UpdateMethod.BROADCAST,
    ranks: Sequence[int] | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    mapping: AnyMapping = None,
    tells: Callable[..., Teller] = Words,
) -> None:
    """Bring ``checkpoint`` to the engines that are driven, else to the sinks of the settings; say what happened."""
    quantize = None if quantize_for is None else quantizer_for(quantize_for)
    with ParameterServer(settings, rank=rank, world_size=world_size) as server:
        teller = tells(quiet=server.rank != 0)
        console = teller.console
        if server.rank == 0:
            _check_before(settings, driven, ranks)
        sinks = settings.sinks
        if driven is not None and (server.rank == 0 or mapping == AUTO):
            sinks = driven.sinks(settings)
        if mapping == AUTO:
            mapping = find_for(what_is_given(**as_source(checkpoint)), sinks, settings)
            console.print(f"mapping: {mapping}", highlight=False, soft_wrap=True)
        name = version if quantize is None else f"{version} as it was read"
        with progress(console, f"reading {checkpoint.name}") as shown:
            stored = server.register(name, **as_source(checkpoint), mapping=mapping, progress=shown)
        if quantize is not None and quantize_for is not None:
            server.lend(version, quantize(stored, quantize_for))
        problems: list[str] = []
        for number, updates in enumerate(steps(server, method, ranks)):
            try:
                problems += run(settings, updates, version, driven, teller)
            except UpdateAbortedError as error:
                if number == 0:
                    raise
                problems.append(str(error))
                say_on_stderr(f"the sinks that --ranks does not name serve '{version}', and the others do not: {error}")
        with after_commit("it cannot be noted for those who join later"):
            if driven is not None and server.rank == 0 and not driven.draft:
                served.remember(driven.engine, version, checkpoint, driven.endpoints, quantize_for)
        with after_commit("its server could not be closed"):
            server.close()
    with after_commit("its report cannot be shown"):
        teller.end(problems)
    if problems:
        raise typer.Exit(INCOMPLETE)


def _check_before(settings: Config, driven: Driven | None, ranks: Sequence[int] | None) -> None:
    """Check what can be checked before engines are asked, or a checkpoint is read, which may take long.

    Raises:
        ConfigError: no sink is named that there is, the secret cannot be used or is needed and not there, or
            the trace cannot be written.
        PluginError: the transport that is asked for cannot run here.
    """
    available.check(settings)
    check_trace(settings)
    if driven is not None:
        check_ways((), settings)
        return
    check_sinks(settings.sinks)
    check_ways(settings.sinks, settings)
    if ranks is not None:
        chosen(settings.sinks, ranks)


def run(settings: Config, updates: Updates, version: str, driven: Driven | None, teller: Teller) -> Sequence[str]:
    """Bring ``version`` by ``updates``, and tell what happened; returns who was lost on the way."""
    what = f"updating to {version}"
    if driven is None:
        with progress(teller.console, what) as shown:
            report = updates.update(version, progress=shown)
        if report is None:
            return ()
        with after_commit("its report cannot be shown"):
            teller.update(report)
        return (*report.lost, *report.left.values())
    fleet = driven.fleet(settings)
    try:
        with progress(teller.console, what) as shown:
            done = fleet.update(updates, version, shown)
    except BaseException:
        fleet.close()
        raise
    with after_commit("its report cannot be shown"):
        fleet.close()
        if done is not None:
            teller.fleet(done)
    return () if done is None else done.problems
