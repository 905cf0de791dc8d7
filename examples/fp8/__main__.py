"""``python -m examples.fp8``, or ``make demo-fp8``: a model that serves FP8 is updated from BF16 weights."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport_fp8 import Target, quantized
from ckpt_transport_fp8.config import parse
from examples.fp8.model import BLOCK, CONFIG, dequantized, serve, trained
from examples.shared import entry
from examples.shared.display import Display, mebibytes, milliseconds

DEADLINE = 60.0


class Result(NamedTuple):
    """What was not as promised, and what is to be said when everything was."""

    problems: tuple[str, ...]
    verdict: str = "every byte is what an independent quantization gives"


def main() -> None:
    """Update a model that serves FP8 from BF16 weights, and check every byte."""
    entry.show(play)


def play(display: Display, folder: Path) -> Result:
    """Update a model in another process twice, and compare what it holds with what it should."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        return _update(display, _receive(pipe), pipe)
    finally:
        pipe.send("stop")
        process.join(DEADLINE)


def _update(display: Display, address: str, pipe: Connection) -> Result:
    target = Target("the demonstration's model", parse(CONFIG, "its configuration"))
    wrong: list[str] = []
    with ParameterServer(Config.load()) as server:
        for step in (1, 2):
            version, weights = f"step-{step}", trained(step)
            server.lend(version, quantized(weights, target))
            report = server.update(version, [address])
            assert report is not None
            server.unregister(version)
            pipe.send("state")
            served, answer, held = _receive(pipe)
            wrong += [name for name, expected in _expected(weights).items() if not _same(held[name], expected)]
            if step == 1:
                display.update(report)
            before = sum(tensor.nbytes for tensor in weights.values())
            sent = sum(bucket.nbytes for bucket in report.plan.buckets)
            display.line(
                f"{served}: {mebibytes(sent)} instead of {mebibytes(before)} travelled ({sent / before:.3f}), in "
                f"{milliseconds(report.seconds)}; the model computes {answer[0, :3]}"
            )
    rows = [[name, f"{_lost(weights[name], held, name):.4f}"] for name in ("up.0.weight", "down.0.weight")]
    display.table(["weight", "lost: ‖FP8 - BF16‖ / ‖BF16‖, against float64"], rows)
    return Result(tuple(f"{name} differs" for name in wrong))


def _expected(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same in the plainest way: whole blocks, one after the other."""
    made: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if weight.dim() == 1:
            made[name] = weight
            continue
        rows = [
            [(block, block.float().abs().max().clamp(min=1e-4) / 448) for block in torch.split(band, BLOCK, 1)]
            for band in torch.split(weight, BLOCK)
        ]
        codes = [torch.cat([block.float() * (1 / scale) for block, scale in row], 1) for row in rows]
        made[name] = torch.cat(codes).to(torch.float8_e4m3fn)
        made[f"{name}_scale_inv"] = torch.tensor([[float(scale) for _, scale in row] for row in rows])
    return made


def _same(held: Any, expected: torch.Tensor) -> bool:
    return torch.equal(torch.from_numpy(held).view(-1), expected.contiguous().view(torch.uint8).view(-1))


def _lost(weight: torch.Tensor, held: dict[str, Any], name: str) -> float:
    codes = torch.from_numpy(held[name]).view(torch.float8_e4m3fn)
    scales = torch.from_numpy(held[f"{name}_scale_inv"]).view(torch.float32)
    back, exact = dequantized(codes, scales).double(), weight.double()
    return float((back - exact).norm() / exact.norm())


def _receive(pipe: Connection) -> Any:
    if not pipe.poll(DEADLINE):
        raise TimeoutError("the model's process does not answer")
    return pipe.recv()


if __name__ == "__main__":
    entry.run(main)
