"""Does what one host does in :mod:`benchmarks.delta_steps`: serves, or trains."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from statistics import median

import msgspec
import torch

from benchmarks._sinks import Block
from ckpt_transport import Config, ParameterServer, Report, ask_version
from ckpt_transport.memory import copy_bytes
from ckpt_transport_torch import attach

PIECE_BYTES = 4 << 20


class Figures(msgspec.Struct, frozen=True):
    """What publishing has taken, in the middle of all rounds.

    Attributes:
        whole: phases of an update that brings everything, in seconds, from a server that takes no deltas.
        whole_paused: for how many of them forward passes were held.
        deltas: the same for the share of elements that had changed.
        paused: for how many seconds forward passes were held.
        moved: bytes on the wire, of all.
        copying: seconds that the trainer's cores take to copy as many bytes as the weights have.
    """

    whole: dict[str, float]
    whole_paused: float
    deltas: dict[float, dict[str, float]]
    paused: dict[float, float]
    moved: dict[float, float]
    copying: float


def serve(nbytes: int, address: str, device: str) -> None:
    """Be an engine until the standard input ends."""
    with attach(Block(nbytes, PIECE_BYTES).to(device), address) as attachment:
        print(attachment.address, flush=True)
        sys.stdin.read()


def train(nbytes: int, sink: str, shares: Sequence[float], rounds: int, device: str) -> Figures:
    """Publish everything, and then by deltas steps in which these shares of the elements have changed."""
    copies: list[float] = []
    here, there = (make(nbytes, dtype=torch.uint8, device=device) for make in (torch.zeros, torch.ones))
    whole: list[Report] = []
    deltas: dict[float, list[Report]] = {share: [] for share in shares}
    with ExitStack() as stack:
        plain, by_deltas = (
            stack.enter_context(ParameterServer(Config.load(commit="auto", delta=delta))) for delta in ("off", "on")
        )
        for number, (weights, changed) in enumerate(_steps(nbytes, shares, rounds, device)):
            if not changed:
                began = time.perf_counter()
                copy_bytes(there, here)
                copies.append(time.perf_counter() - began)
                served = ask_version(sink, timeout=60, digest=True).digest if number else ""
                whole.append(_published(plain, f"whole-{number}", weights, sink))
                assert served in ("", ask_version(sink, timeout=60, digest=True).digest), "deltas gave something else"
                _published(by_deltas, f"base-{number}", weights, sink)
                continue
            report = _published(by_deltas, f"step-{number}", weights, sink)
            assert report.delta is not None
            assert report.delta.base, report.delta.reason
            deltas[changed].append(report)
    return Figures(
        _phases(whole[1:]),
        median(max(report.paused.values()) for report in whole[1:]),
        {share: _phases(reports[1:]) for share, reports in deltas.items()},
        {share: median(max(report.paused.values()) for report in reports[1:]) for share, reports in deltas.items()},
        {share: reports[0].plan.manifest.nbytes / nbytes for share, reports in deltas.items()},
        median(copies),
    )


def _steps(
    nbytes: int, shares: Sequence[float], rounds: int, device: str
) -> Iterator[tuple[dict[str, torch.Tensor], float]]:
    """Weights, and the share that has changed since the ones before; at the begin of each round none has."""
    generator = torch.Generator(device).manual_seed(7)
    weights = {
        f"weights.{n}": torch.randn(PIECE_BYTES // 2, generator=generator, device=device).bfloat16()
        for n in range(nbytes // PIECE_BYTES)
    }
    for _ in range(rounds + 1):
        yield weights, 0.0
        for share in shares:
            for tensor in weights.values():
                hit = torch.randperm(tensor.numel(), generator=generator, device=device)[: int(share * tensor.numel())]
                tensor.view(torch.int16)[hit] ^= 1
            yield weights, share


def _published(server: ParameterServer, version: str, weights: dict[str, torch.Tensor], sink: str) -> Report:
    report = server.publish(version, weights, [sink])
    assert report is not None
    return report


def _phases(reports: Sequence[Report]) -> dict[str, float]:
    names = dict.fromkeys(name for report in reports for name in report.phases)
    return {name: median(report.phases.get(name, 0.0) for report in reports) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    serving, training = commands.add_parser("serve"), commands.add_parser("train")
    for each in (serving, training):
        each.add_argument("--nbytes", type=int, required=True)
        each.add_argument("--device", default="cpu")
    serving.add_argument("--address", default="")
    training.add_argument("--sink", required=True)
    training.add_argument("--rounds", type=int, required=True)
    training.add_argument("--share", type=float, action="append", required=True)
    given = parser.parse_args()
    if given.command == "serve":
        serve(given.nbytes, given.address, given.device)
    else:
        figures = train(given.nbytes, given.sink, given.share, given.rounds, given.device)
        sys.stdout.buffer.write(msgspec.json.encode(figures) + b"\n")


if __name__ == "__main__":
    main()
