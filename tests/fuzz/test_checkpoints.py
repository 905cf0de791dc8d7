"""Checkpoints, and what lies beside them: headers, indexes, configurations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from ckpt_transport.checkpoint.directory import INDEX, from_directory
from ckpt_transport.checkpoint.header import read_header
from ckpt_transport.checkpoint.quantizers import quantizer_for
from ckpt_transport_fp8.config import parse
from tests.fuzz.damage import BURSTS, changed, damaged
from tests.fuzz.fuzzing import fuzz

FILE = save({"a": torch.zeros(3, 4), "b.weight": torch.zeros(5, dtype=torch.bfloat16)}, {"format": "pt"})
HEADER = msgspec.json.decode(FILE[8 : 8 + int.from_bytes(FILE[:8], "little")])
DATA = FILE[8 + int.from_bytes(FILE[:8], "little") :]
QUANTIZED: list[dict[str, Any]] = [
    {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "ignored_layers": ["lm_head"]}},
    {
        "text_config": {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "ignore": ["re:.*head"],
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
                        "input_activations": {"dynamic": True},
                    }
                },
            }
        }
    },
]


def with_header(header: Any) -> bytes:
    said = msgspec.json.encode(header)
    return len(said).to_bytes(8, "little") + said + DATA


def test_given_a_safetensors_file_that_is_damaged_then_it_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        fd = os.open(path, os.O_RDONLY)
        try:
            read_header(path, fd)
        finally:
            os.close(fd)

    read(FILE)
    fuzz(damaged([FILE]), read, examples=120)
    fuzz(changed([HEADER]).map(with_header), read, examples=120)
    fuzz(st.sampled_from(BURSTS).map(lambda burst: len(burst).to_bytes(8, "little") + burst), read)


def test_given_an_index_that_says_anything_then_the_checkpoint_is_found_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(FILE)
    index = {"metadata": {"total_size": 58}, "weight_map": {"a": "a.safetensors", "b.weight": "a.safetensors"}}

    def read(data: bytes) -> None:
        (tmp_path / INDEX).write_bytes(data)
        from_directory(tmp_path)

    read(msgspec.json.encode(index))
    fuzz(damaged([msgspec.json.encode(index)]), read)
    fuzz(changed([index]).map(msgspec.json.encode), read)


def test_given_a_configuration_that_says_anything_then_its_quantization_is_known_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"

    def read(config: Any) -> None:
        path.write_bytes(msgspec.json.encode(config))
        quantizer_for(path)

    def look(config: Any) -> None:
        found = parse(config, "config.json")
        found.group_of("model.layers.0.mlp.up_proj")

    for config in QUANTIZED:
        read(config)
        look(config)
    fuzz(changed(QUANTIZED), read, examples=120)
    fuzz(changed(QUANTIZED).filter(lambda config: isinstance(config, dict)), look, examples=120)
