"""Compares what the simulator predicts with what updates take between hosts with shaped links.

Hosts are network namespaces with at most 200 Mbit/s, so that processors are not the limit. Of each link one TCP
connection and nothing of this library says how many bytes it brings in a second, and how many it takes in before they
arrive. An update between two hosts whose link is no limit, by rings of one slot, says how long processors take from one
bucket to the next. ``predict`` simulates every situation with these, and nothing else is fitted; ``measure`` runs the
updates and prints every error. Needs root and iproute2, and nftables for links that lose packets: of these, too, one
connection says what they bring.
Usage: ``python -m benchmarks.sim_check``; with ``--predict`` it writes predictions and stops; ``--links lossy`` takes
links that lose packets.
"""

from __future__ import annotations

import enum
import itertools
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated

import msgspec
import typer

from benchmarks._links import Host, NoLinksError, hosts
from benchmarks._prediction_errors import PredictedRun, error_rows, order_row
from benchmarks._report import Row, report
from benchmarks._simulated import TENSOR_BYTES, names
from benchmarks.p2p_joiners import running, said
from ckpt_transport.checkpoint.checkpoint import CheckpointFile, FileStamp
from ckpt_transport.checkpoint.header import TensorEntry
from ckpt_transport.planning import Settings, StageKind, TensorSpec, plan
from ckpt_transport.simulator import Cluster, manifest_of, simulate, world_of
from ckpt_transport.simulator.cluster import Costs, HostLinks, Slower, TransportRates

PREDICTIONS = Path(__file__).parent / "predictions"
WORKER = (sys.executable, "-m", "benchmarks._simulated")
MBIT = 1e6 / 8
TREE, CHAIN = "gloo+shm", "gloo-chain+shm"


class Shaped(msgspec.Struct, frozen=True):
    """A situation: hosts with links of these rates, the source on the first, and a plan.

    Attributes:
        mbit: of each host, in millions of bits per second.
        transport, ring_depth: of the plan.
        mib: size of the version, in buckets of 1 MiB.
        sinks: on each host.
        lost: of each 10,000 packets.
    """

    mbit: tuple[int, ...]
    transport: str
    ring_depth: int = 4
    mib: int = 24
    sinks: int = 1
    lost: int = 0

    @property
    def cluster(self) -> tuple[object, ...]:
        """What plans are compared on."""
        return self.mbit, self.mib, self.sinks, self.lost

    @property
    def links(self) -> list[str]:
        """What the link of each host is called."""
        return [link_name(mbit, self.lost) for mbit in self.mbit]

    def __str__(self) -> str:
        more = f", {self.sinks} sinks each" if self.sinks > 1 else ""
        more += f", {self.lost / 100:g} % of packets lost" if self.lost else ""
        return f"{'/'.join(map(str, self.mbit))} Mbit/s, {self.transport}, ring of {self.ring_depth}{more}"


def link_name(mbit: int, lost: int) -> str:
    return f"{mbit}, {lost} lost" if lost else str(mbit)


class Predicted(msgspec.Struct, frozen=True):
    """What the simulator says: seconds of the run, and when each sink, by rank, has all of it."""

    situation: Shaped
    seconds: float
    finished: dict[str, float]
    slowest: str


class Predictions(msgspec.Struct, frozen=True):
    """What was measured before, and what follows from that.

    Attributes:
        links: bytes per second that one connection brings over a link of that name: of so many Mbit/s.
        buffered: bytes that it takes in before they arrive.
        turnaround: seconds from one bucket to the next where there is one slot and links are no limit.
        predictions: of every situation.
    """

    links: dict[str, float]
    buffered: dict[str, float]
    turnaround: float
    predictions: tuple[Predicted, ...]


class Run(msgspec.Struct, frozen=True):
    """What one update took: seconds of its phase ``run``, and when each sink, by rank, had all of it."""

    run: float
    finished: dict[str, float]


class Compared(msgspec.Struct, frozen=True):
    """A prediction, and what updates took."""

    predicted: Predicted
    runs: tuple[float, ...]
    finished: tuple[dict[str, float], ...]

    @property
    def error(self) -> float:
        """Of the predicted run, as a part of the median of those that were measured."""
        return self.predicted.seconds / median(self.runs) - 1

    @property
    def sink_errors(self) -> list[float]:
        return [
            self.predicted.finished[rank] / seconds - 1
            for run in self.finished
            for rank, seconds in run.items()
            if rank in self.predicted.finished
        ]

    @property
    def moment_errors(self) -> list[float]:
        """How far each sink's moment is off, as a part of the run that was measured."""
        return [
            (self.predicted.finished[rank] - seconds) / run
            for run, finished in zip(self.runs, self.finished, strict=True)
            for rank, seconds in finished.items()
            if rank in self.predicted.finished
        ]

    @property
    def moments(self) -> str:
        """When each sink had everything, predicted and measured."""
        medians = {
            rank: median(finished[rank] for finished in self.finished)
            for rank in self.predicted.finished
            if all(rank in finished for finished in self.finished)
        }
        return ", ".join(f"{self.predicted.finished[rank]:.2f}/{seconds:.2f}" for rank, seconds in medians.items())


SITUATIONS = tuple(
    Shaped(mbit, transport, ring, mib, sinks)
    for mbit, mib, sinks in (
        ((50, 200), 12, 1),
        ((100, 200, 100), 16, 1),
        ((200, 50, 50), 12, 1),
        ((200, 100, 50, 200), 12, 1),
        ((200, 200, 100, 50), 12, 1),
        ((100, 200, 50), 12, 2),
    )
    for transport in (TREE, CHAIN)
    for ring in (4, 1)
    if len(mbit) > 2 or transport == TREE
)


LOSSY = tuple(
    Shaped((100, 100, 100), transport, mib=16, lost=lost) for lost in (10, 100) for transport in (TREE, CHAIN)
)


class Links(enum.StrEnum):
    """Kinds of links, and with that which situations there are."""

    RELAYS = "relays"
    LOSSY = "lossy"


SETS = {Links.RELAYS: SITUATIONS, Links.LOSSY: LOSSY}


def measured_link(mbit: int, lost: int = 0) -> tuple[float, float]:
    """Bytes per second of one connection out of a link of that rate, and into it: the slower of the two.

    Returns: that, and the fewest bytes that it takes in before they arrive.

    Raises:
        NoLinksError: this machine does not allow shaped links.
    """
    rates, buffered = [], []
    with hosts([mbit * 1_000_000, 0], lost) as made:
        for sender, receiver in (made, made[::-1]):
            with running(_start(receiver, "receive", "--address", receiver.address)) as receiving:
                said(receiving)
                with running(_start(sender, "send", "--address", receiver.address)) as sending:
                    sent = float(said(sending))
                    rate, arrived = map(float, said(receiving).split())
            rates.append(rate)
            buffered.append((arrived - sent) * rate)
    return min(rates), min(buffered)


def measured_turnaround() -> float:
    """Seconds from one bucket to the next between two hosts whose link is no limit, by rings of one slot.

    Raises:
        NoLinksError: this machine does not allow shaped links.
    """
    unlimited = Shaped((0, 0), TREE, ring_depth=1, mib=64)
    (compared,) = measure([Predicted(unlimited, 0.0, {}, "")], repetitions=5)
    return median(compared.runs) / unlimited.mib


def predict(situation: Shaped, links: dict[str, float], buffered: dict[str, float], turnaround: float) -> Predicted:
    rates = [links[name] for name in situation.links]
    room = min(buffered[name] for name in situation.links)
    cluster = Cluster(
        hosts=len(rates),
        sinks=situation.sinks,
        transports=("gloo", "shm"),
        links=HostLinks(nic=max(rates)),
        costs=Costs(network=0.0),
        slower=tuple(Slower(hosts=(host,), nic=rate) for host, rate in enumerate(rates)),
        transport={"gloo": TransportRates(buffered=int(room), turnaround=turnaround)},
    )
    world = world_of(cluster, 1)
    specs = [TensorSpec(name, "U8", (TENSOR_BYTES,)) for name in names(situation.mib)]
    entries = tuple(TensorEntry(spec, number * TENSOR_BYTES, TENSOR_BYTES) for number, spec in enumerate(specs))
    manifest = manifest_of(world, (CheckpointFile(Path("version"), FileStamp(0, 0, 0, 0), entries),))
    settings = Settings(transport=situation.transport, bucket_bytes=1 << 20, ring_depth=situation.ring_depth)
    made = plan(manifest, world.topology, world.traits, settings, world.rates)
    run = simulate(made, world, shown=world.topology.sinks)
    applied = [event for event in run.timeline if event.kind is StageKind.APPLY]
    finished = {str(event.rank): event.end for event in applied}
    return Predicted(situation, run.seconds, finished, run.slowest)


def measure(alike: Sequence[Predicted], repetitions: int) -> Iterator[Compared]:
    """Bring versions to the sinks of one cluster, plan by plan; the first update of each, which connects, is not told.

    Raises:
        NoLinksError: this machine does not allow shaped links.
    """
    situation = alike[0].situation
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        secret = folder / "secret"
        secret.write_text(secrets.token_hex(32))
        secret.chmod(0o600)
        made = stack.enter_context(hosts([mbit * 1_000_000 for mbit in situation.mbit], situation.lost))
        mib = ("--mib", situation.mib)
        serving = [
            stack.enter_context(running(_start(host, "serve", *mib, "--address", host.address, secret=secret)))
            for host in made
            for _ in range(situation.sinks)
        ]
        sinks = [word for process in serving for word in ("--sink", said(process))]
        leading = stack.enter_context(running(_start(made[0], "lead", *mib, *sinks, secret=secret)))
        values = itertools.count(1)
        for predicted in alike:
            chosen = [next(values) for _ in range(repetitions + 1)]
            _say(leading, predicted.situation.transport, predicted.situation.ring_depth, *chosen)
            runs = msgspec.json.decode(said(leading), type=list[Run])[1:]
            for process in serving:
                _say(process, chosen[-1])
                if said(process) != "True":
                    raise RuntimeError(f"{predicted.situation}: a sink does not have the version")
            yield Compared(predicted, tuple(run.run for run in runs), tuple(run.finished for run in runs))


def _start(host: Host, *arguments: object, secret: Path | None = None) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()]),
        "CKPT_TRANSPORT_HOST": host.name,
        "CKPT_TRANSPORT_INTERFACE": host.address,
        "CKPT_TRANSPORT_MEMORY_BUDGET": "1GiB",
        "CKPT_TRANSPORT_BUCKET_BYTES": "1MiB",
        "CKPT_TRANSPORT_HEARTBEAT_TIMEOUT": "20",
    }
    if secret is not None:
        environment["CKPT_TRANSPORT_SECRET_FILE"] = str(secret)
    return subprocess.Popen(
        host.command([*WORKER, *map(str, arguments)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _say(process: subprocess.Popen[str], *words: object) -> None:
    assert process.stdin is not None
    process.stdin.write(" ".join(map(str, words)) + "\n")
    process.stdin.flush()


def rows(compared: Sequence[Compared]) -> Iterator[Row]:
    """Every prediction against the median of its updates; and how large errors are, and whether orders were right."""
    for each in compared:
        predicted, measured = each.predicted.seconds, median(each.runs)
        detail = (
            f"{predicted:.2f} s predicted, {measured:.2f} s measured ({min(each.runs):.2f} to {max(each.runs):.2f}); "
            f"sinks had everything at, predicted/measured: {each.moments}"
        )
        yield Row(str(each.predicted.situation), predicted / measured, "measured", "", detail)
    for what, errors in (
        ("runs", [abs(each.error) for each in compared]),
        ("moments at which sinks had everything", [abs(error) for each in compared for error in each.sink_errors]),
        (
            "moments, as a part of the run",
            [abs(error) for each in compared for error in each.moment_errors],
        ),
    ):
        yield from error_rows(what, errors)
    yield order_row(
        [
            PredictedRun(str(predicted.situation), predicted.situation.cluster, predicted.seconds, median(runs))
            for predicted, runs in ((each.predicted, each.runs) for each in compared)
        ]
    )


def main(
    predictions: Annotated[bool, typer.Option("--predict", help="Measure links, write predictions, and stop.")] = False,
    links: Annotated[Links, typer.Option(help="Links of different rates, or such that lose packets.")] = Links.RELAYS,
    repetitions: Annotated[int, typer.Option(min=1, help="Updates of each situation.")] = 3,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the rows there, and a page beside it.")
    ] = None,
) -> None:
    situations, path = SETS[links], PREDICTIONS / f"sim-check-{links}.json"
    try:
        if predictions:
            kinds = sorted({(mbit, situation.lost) for situation in situations for mbit in situation.mbit})
            measured = {link_name(*kind): measured_link(*kind) for kind in kinds}
            rates = {name: rate for name, (rate, _) in measured.items()}
            buffered = {name: room for name, (_, room) in measured.items()}
            turnaround = measured_turnaround()
            predicted = tuple(predict(situation, rates, buffered, turnaround) for situation in situations)
            made = Predictions(rates, buffered, turnaround, predicted)
            path.write_bytes(msgspec.json.format(msgspec.json.encode(made)) + b"\n")
            return
        committed = msgspec.json.decode(path.read_bytes(), type=Predictions)
        compared: list[Compared] = []
        for _, alike in itertools.groupby(committed.predictions, key=lambda each: each.situation.cluster):
            for each in measure(list(alike), repetitions):
                compared.append(each)
                print(f"{each.predicted.situation}: {each.error:+.1%}", file=sys.stderr, flush=True)
    except NoLinksError as error:
        print(f"shaped links cannot be made here: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    report(list(rows(compared)), json_path)


if __name__ == "__main__":
    typer.run(main)
