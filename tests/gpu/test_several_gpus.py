"""Given a module that lies on two GPUs, when its weights are updated, then all of it is exact."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from tests.fleet import SinkSpec, fleet, model, weights
from tests.patience import SWIFT

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


class Here(torch.nn.Module):
    """A layer on a GPU, which brings its input there."""

    def __init__(self, layer: torch.nn.Module, gpu: int) -> None:
        super().__init__()
        self.layer = layer.to(f"cuda:{gpu}")
        self.gpu = gpu

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(inputs.cuda(self.gpu))
        return outputs


def spread(seed: int, gpus: tuple[int, int] = (0, 0)) -> torch.nn.Module:
    """A model whose layers lie on two GPUs in turns."""
    layers = model(seed).children()
    return torch.nn.Sequential(*[Here(layer, gpus[number % 2]) for number, layer in enumerate(layers)])


def spread_weights(seed: int) -> dict[str, torch.Tensor]:
    return {name.replace(".", ".layer."): tensor for name, tensor in weights(seed).items()}


@pytest.mark.parametrize(
    ("transport", "gpus"),
    [("shm", (0, 1)), ("shm", (1, 0)), ("gloo", (0, 1)), ("cuda_ipc", (0, 1)), ("nccl", (1, 0))],
    ids=str,
)
def test_given_a_module_on_several_gpus_then_every_layer_holds_the_new_version_wherever_it_lies(
    transport: str, gpus: tuple[int, int]
) -> None:
    """The source uses the first GPU, and the sink that of its first layer."""
    config = Config.load(**{**SWIFT, "heartbeat_timeout": 5.0, "transport": transport, "bucket_bytes": "256KiB"})
    with fleet(SinkSpec({"gpus": gpus}, make=spread)) as (sink,), ParameterServer(config) as server:
        for seed in (2, 3, 4):
            server.register(f"v{seed}", tensors=spread_weights(seed))
            server.update(f"v{seed}", [sink.address])
            state = sink.state()
            assert state.holds(spread_weights(seed))
            assert (state.version, state.tainted, state.served) == (f"v{seed}", "", "")
