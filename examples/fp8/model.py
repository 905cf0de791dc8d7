"""A plain PyTorch model that serves FP8, and the process that it serves in."""

from __future__ import annotations

from multiprocessing.connection import Connection

import torch

from ckpt_transport_torch import attach

WIDTH, INNER, LAYERS, BLOCK = 768, 1600, 8, 128
"""The inner width is no multiple of a block, so that blocks at the edge are smaller."""
CONFIG = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}}


class Fp8Linear(torch.nn.Module):
    """A linear layer whose weight is e4m3 with a scale for each block, and dequantized whenever it computes."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        down, across = -(-rows // BLOCK), -(-columns // BLOCK)
        self.register_buffer("weight", torch.zeros(rows, columns, dtype=torch.float8_e4m3fn))
        self.register_buffer("weight_scale_inv", torch.ones(down, across))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = dequantized(self.get_buffer("weight"), self.get_buffer("weight_scale_inv"))
        return torch.nn.functional.linear(inputs, weight)


class Model(torch.nn.Module):
    """Layers that widen and narrow, a residual around each pair, and a norm in BF16 at the end."""

    def __init__(self) -> None:
        super().__init__()
        pairs = [(Fp8Linear(INNER, WIDTH), Fp8Linear(WIDTH, INNER)) for _ in range(LAYERS)]
        self.up = torch.nn.ModuleList(up for up, _ in pairs)
        self.down = torch.nn.ModuleList(down for _, down in pairs)
        self.norm = torch.nn.LayerNorm(WIDTH, dtype=torch.bfloat16)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            inputs = inputs + down(torch.relu(up(inputs)))
        outputs: torch.Tensor = self.norm(inputs.bfloat16())
        return outputs


def dequantized(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Codes times the scale of their block, float32."""
    rows, columns = codes.shape
    spread = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return codes.to(torch.float32) * spread


def trained(seed: int) -> dict[str, torch.Tensor]:
    """What a trainer has: BF16 weights by the model's names."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"up.{layer}.weight": (INNER, WIDTH), f"down.{layer}.weight": (WIDTH, INNER)}
    return {name: torch.randn(shape, generator=generator).mul(0.04).bfloat16() for name, shape in shapes.items()}


def serve(pipe: Connection) -> None:
    """The process: say where the model can be updated, then answer with what it holds and computes."""
    model = Model()
    with attach(model) as serving:
        pipe.send(serving.address)
        while pipe.recv() == "state":
            with torch.inference_mode():
                answer = model(torch.ones(1, WIDTH)).float()
            held = {name: tensor.contiguous().view(torch.uint8).numpy() for name, tensor in model.state_dict().items()}
            pipe.send((serving.version, answer.numpy(), held))
