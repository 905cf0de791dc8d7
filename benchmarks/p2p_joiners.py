"""Measures how much longer 8 joining engines take than one to get a version from one holder, over links of one speed.

Hosts are network namespaces whose links are shaped to one rate in both directions. Three ways over the same links: a
chain, in which each engine passes on to the next; one source that sends to each; and reading in turn with broadcasts in
lock step, as checkpoint-engine does. Needs root and iproute2. Usage: ``python -m benchmarks.p2p_joiners``.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from benchmarks._links import Host, NoLinksError, hosts
from benchmarks._report import Row, report
from benchmarks._tcp import ADDRESS, TcpTransport, install

WORKER = (sys.executable, "-m", "benchmarks._joining")
CHAIN, DIRECT = f"{TcpTransport.name}-chain", TcpTransport.name


class Machines:
    """The hosts, and what every process there is started with."""

    def __init__(self, folder: Path, made: Sequence[Host], worker: Sequence[str] = WORKER) -> None:
        self.folder, self.hosts, self._worker = folder, made, worker
        install(folder)
        self._secret = folder / "secret"
        self._secret.write_text(secrets.token_hex(32))
        self._secret.chmod(0o600)

    def start(self, number: int, *arguments: object, transport: str = "auto") -> subprocess.Popen[str]:
        """A worker on host ``number``."""
        host = self.hosts[number]
        environment = {
            **os.environ,
            ADDRESS: host.address,
            "PYTHONPATH": os.pathsep.join(
                [str(self.folder), *filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()])]
            ),
            "GLOO_SOCKET_IFNAME": "eth0",
            "CKPT_TRANSPORT_HOST": host.name,
            "CKPT_TRANSPORT_INTERFACE": host.address,
            "CKPT_TRANSPORT_SECRET_FILE": str(self._secret),
            "CKPT_TRANSPORT_TRANSPORT": transport,
        }
        return subprocess.Popen(
            host.command([*self._worker, *map(str, arguments)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )


def said(process: subprocess.Popen[str]) -> str:
    """The next line a worker says."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"a worker of the benchmark has ended with {process.wait()}")
    return line


@contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def join(machines: Machines, metas: Path, joiners: Sequence[tuple[str, Any]], transport: str) -> dict[str, float]:
    """Bring the version to these; check that they have it."""
    sinks = [word for address, _ in joiners for word in ("--sink", address)]
    with running(machines.start(0, "lead", "--metas", metas, *sinks, transport=transport)) as leading:
        took = msgspec.json.decode(said(leading), type=dict[str, float])
    for _, process in joiners:
        process.stdin.write("check\n")
        process.stdin.flush()
    if not all(said(process) == "True" for _, process in joiners):
        raise RuntimeError(f"{transport}: a joiner does not have the version")
    return took


def lock_step(machines: Machines, nbytes: int, bucket: int, joiners: int) -> float:
    """Seconds of checkpoint-engine's order over the same links; the holder is host 1."""
    common = ("--nbytes", nbytes, "--bucket", bucket, "--world", joiners + 1, "--address", machines.hosts[1].address)
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(running(machines.start(rank + 1, "lock-step", "--rank", rank, *common)))
            for rank in range(joiners + 1)
        ]
        return max(float(said(process)) for process in ranks)


def measure(mib: int = 48, mbit: int = 200, counts: Sequence[int] = (1, 2, 4, 8)) -> list[Row]:
    """
    Raises:
        NoLinksError: this machine does not allow shaped links.
    """
    nbytes, most = mib << 20, max(counts)
    wire = nbytes / (mbit * 1e6 / 8)
    times: dict[str, dict[int, float]] = {CHAIN: {}, DIRECT: {}, "lock step": {}}
    runs: dict[int, float] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        machines = Machines(folder, stack.enter_context(hosts([mbit * 1_000_000] * (most + 2))))
        metas = folder / "metas.json"
        with ExitStack() as serving:
            holder = serving.enter_context(running(machines.start(1, "hold", "--nbytes", nbytes, "--metas", metas)))
            started = [
                serving.enter_context(running(machines.start(number + 2, "serve", "--nbytes", nbytes)))
                for number in range(most)
            ]
            said(holder)
            joiners = [(said(process), process) for process in started]
            for count in counts:
                for transport in (CHAIN, DIRECT) if count > 1 else (DIRECT,):
                    took = join(machines, metas, joiners[:count], transport)
                    times[transport][count] = took["seconds"]
                    if transport == CHAIN or count == 1:
                        runs[count] = took["run"]
        times[CHAIN][1] = times[DIRECT][1]
        for count in counts:
            times["lock step"][count] = lock_step(machines, nbytes, 1 << 20, count)
    _show(times, counts, wire, mib, mbit)
    one = times[DIRECT][1]
    figures = f"{mib} MiB over links of {mbit} Mbit/s, which take {wire:.2f} s; one joiner {one:.2f} s"
    return [
        Row(
            f"{most} joiners in a chain", times[CHAIN][most] / one, "one joiner", "<=2.2",
            f"{times[CHAIN][most]:.2f} s (run {runs[most]:.2f} s); {figures}",
        ),
        Row(
            f"{most} joiners, one source sends to each", times[DIRECT][most] / one, "one joiner", "",
            f"{times[DIRECT][most]:.2f} s",
        ),
        Row(
            f"{most} joiners, lock step as checkpoint-engine", times["lock step"][most] / times[CHAIN][most],
            "the chain", ">1", f"{times['lock step'][most]:.2f} s against {times[CHAIN][most]:.2f} s",
        ),
        Row("one joiner", one / wire, "its link's rate", "", f"{one:.2f} s against {wire:.2f} s"),
    ]  # fmt: skip


def _show(times: dict[str, dict[int, float]], counts: Sequence[int], wire: float, mib: int, mbit: int) -> None:
    table = Table("seconds for", *(f"{count} joiners" for count in counts), title=f"{mib} MiB, {mbit} Mbit/s per link")
    for name, row in times.items():
        table.add_row(name, *(f"{row[count]:.2f}" for count in counts))
    table.add_row("one link, full", *(f"{wire:.2f}" for _ in counts))
    Console().print(table)


def main(
    mib: Annotated[int, typer.Option(help="Size of the weights.")] = 48,
    mbit: Annotated[int, typer.Option(help="Speed of each link, in both directions, in megabits per second.")] = 200,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Fill joining engines over shaped links."""
    try:
        report(measure(mib, mbit), json)
    except NoLinksError as error:
        Console(stderr=True).print(f"cannot measure here: {error}", soft_wrap=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
