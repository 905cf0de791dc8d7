"""Measures what publishing a step as FP8 takes, when it is compared where it is computed and when it is on the host.

A trainer has BF16 weights of linear layers, and an engine in the same process serves them as FP8 with a scale for each
block. Some elements change at random places, and the step is published by three servers in turns: one that sends
everything, and two that send deltas, with ``delta_base`` 'host' and 'beside'. What is served is compared with what the
first one brings. Usage: ``python -m benchmarks.delta_fp8``, and on a GPU with ``--device cuda --mib 8192``.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from benchmarks._report import Row, report
from ckpt_transport import Config, ParameterServer, Report, ask_version
from ckpt_transport.update.report import DeltaSummary
from ckpt_transport_fp8 import Target, quantized
from ckpt_transport_fp8.config import parse
from ckpt_transport_torch import attach

WIDTH = 2048
BLOCK = 128
SHARES = (0.01, 0.05)
CONFIG = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}}
SETTINGS: dict[str, dict[str, Any]] = {
    "everything": {"delta": "off"},
    "host": {"delta": "on", "delta_base": "host"},
    "beside": {"delta": "on", "delta_base": "beside"},
}
Weights = dict[str, torch.Tensor]


class Fp8Layers(torch.nn.Module):
    """As many layers as are served; nothing is computed with them."""

    def __init__(self, layers: int, device: torch.device) -> None:
        super().__init__()
        blocks = WIDTH // BLOCK
        for number in range(layers):
            layer = torch.nn.Module()
            codes = torch.zeros(WIDTH, WIDTH, dtype=torch.float8_e4m3fn, device=device)
            layer.register_buffer("weight", codes)
            layer.register_buffer("weight_scale_inv", torch.zeros(blocks, blocks, device=device))
            self.add_module(str(number), layer)


def measure(mib: int = 256, rounds: int = 3, device: str = "cpu") -> list[Row]:
    """A row for each share that changes and each way to compare.

    Args:
        mib: of the BF16 weights.
        rounds: that are counted.
        device: where weights and the engine are.
    """
    where = torch.device(device)
    layers = max(1, (mib << 20) // (2 * WIDTH * WIDTH))
    generator = torch.Generator(where).manual_seed(7)
    weights = {
        f"{number}.weight": torch.randn(WIDTH, WIDTH, generator=generator, device=where).bfloat16()
        for number in range(layers)
    }
    taken: defaultdict[tuple[float, str], list[float]] = defaultdict(list)
    said: dict[tuple[float, str], str] = {}
    target = Target("the engine", parse(CONFIG, "its configuration"))
    with ExitStack() as stack:
        serving = stack.enter_context(attach(Fp8Layers(layers, where)))
        servers = {
            name: stack.enter_context(ParameterServer(Config.load(commit="auto", **settings)))
            for name, settings in SETTINGS.items()
        }
        for share in SHARES:
            for count in range(rounds + 1):
                _change(weights, share, generator)
                digests = set()
                for name, server in servers.items():
                    version = f"{name}-{share}-{count}"
                    if name != "everything":
                        _bring_base(server, version, weights, target, serving.address, share, generator)
                    began = time.perf_counter()
                    made = server.publish(version, quantized(weights, target), [serving.address])
                    if count:
                        taken[share, name].append(time.perf_counter() - began)
                    assert made is not None
                    assert made.delta is not None or name == "everything"
                    if made.delta is not None and name != "everything":
                        assert made.delta.base, made.delta.reason
                        said[share, name] = _told(made, made.delta)
                    digests.add(ask_version(serving.address, timeout=60, digest=True).digest)
                assert len(digests) == 1, "deltas gave something else"
    return [
        Row(
            f"publish FP8, base '{name}', {share:.0%} changed",
            median(taken[share, name]) / median(taken[share, "everything"]),
            "everything",
            "",
            f"{median(taken[share, name]):.3f} s and {median(taken[share, 'everything']):.3f} s; {how}",
        )
        for (share, name), how in said.items()
    ]


def _told(report: Report, delta: DeltaSummary) -> str:
    """What was sent, and how long the phases of the update have taken."""
    phases = (f"{name} {seconds * 1e3:.0f}" for name, seconds in report.phases.items() if seconds > 2e-3)
    return f"{delta.sent_nbytes / delta.version_nbytes:.2%} of the bytes; {', '.join(phases)} ms"


def _change(weights: Weights, share: float, generator: torch.Generator) -> None:
    """Other values at a share of the places."""
    for tensor in weights.values():
        count = round(share * tensor.numel())
        hit = torch.randint(tensor.numel(), (count,), generator=generator, device=tensor.device)
        tensor.view(-1)[hit] *= -1


def _bring_base(
    server: ParameterServer,
    version: str,
    weights: Weights,
    target: Target,
    address: str,
    share: float,
    generator: torch.Generator,
) -> None:
    """Have a server bring weights that differ from these in that share, so that these are a delta to it."""
    state = generator.get_state()
    other = {name: tensor.clone() for name, tensor in weights.items()}
    _change(other, share, generator)
    generator.set_state(state)
    server.publish(f"{version}, base", quantized(other, target), [address])


def main(
    mib: Annotated[int, typer.Option(help="Size of the BF16 weights.")] = 256,
    rounds: Annotated[int, typer.Option(help="That are counted.")] = 3,
    device: Annotated[str, typer.Option(help="Where weights and the engine are, as 'cpu' or 'cuda'.")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Measure publishing FP8 by deltas."""
    report(measure(mib, rounds, device), json)


if __name__ == "__main__":
    typer.run(main)
