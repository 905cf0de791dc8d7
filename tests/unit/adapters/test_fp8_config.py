"""Given a quantization_config as checkpoints in the field have it, then the right modules are FP8, in the right way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckpt_transport.errors import ConfigError
from ckpt_transport.planning import TensorSpec
from ckpt_transport_fp8 import read_target
from ckpt_transport_fp8.config import Quantization, parse
from ckpt_transport_fp8.scheme import Granularity, Scheme

DEEPSEEK = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
CHANNEL = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head", "re:.*mlp.gate$"],
}


def of(config: dict[str, Any]) -> Quantization:
    return parse({"quantization_config": config}, "config.json")


def scheme(config: dict[str, Any], module: str) -> Scheme | None:
    group = of(config).group_of(module)
    return None if group is None else group.scheme


def test_given_deepseek_then_its_weights_have_blocks() -> None:
    found = scheme(DEEPSEEK, "model.layers.3.mlp.experts.7.up_proj")
    assert found == Scheme(Granularity.BLOCK, "weight_scale_inv", (128, 128))
    assert scheme(DEEPSEEK | {"scale_fmt": "ue8m0"}, "a.q_proj") == Scheme(
        Granularity.BLOCK, "weight_scale_inv", (128, 128), powers_of_two=True
    )


def test_given_scales_of_a_tensor_then_they_may_come_with_scales_of_activations() -> None:
    for activations in ("static", "dynamic"):
        group = of({"quant_method": "fp8", "activation_scheme": activations}).group_of("model.layers.0.mlp.up_proj")
        assert group is not None
        assert group.scheme == Scheme(Granularity.TENSOR, "weight_scale")
        assert group.needs_input_scale == (activations == "static")


def test_given_compressed_tensors_then_there_are_channels_tensors_and_blocks() -> None:
    assert scheme(CHANNEL, "model.layers.0.mlp.up_proj") == Scheme(Granularity.CHANNEL, "weight_scale")
    group: dict[str, Any] = json.loads(json.dumps(CHANNEL))
    weights = group["config_groups"]["group_0"]["weights"]
    weights["strategy"] = "tensor"
    assert scheme(group, "a.up_proj") == Scheme(Granularity.TENSOR, "weight_scale")
    weights |= {"strategy": "block", "block_structure": [128, 64]}
    assert scheme(group, "a.up_proj") == Scheme(Granularity.BLOCK, "weight_scale", (128, 64))


def test_given_groups_then_they_count_in_their_order() -> None:
    config = json.loads(json.dumps(CHANNEL))
    groups = config["config_groups"]
    groups["group_0"]["targets"] = ["re:.*self_attn.*"]
    groups["group_1"] = json.loads(json.dumps(groups["group_0"])) | {"targets": ["Linear"]}
    groups["group_1"]["weights"]["strategy"] = "tensor"
    for module, granularity in (("l.0.self_attn.q_proj", Granularity.CHANNEL), ("l.0.mlp.x", Granularity.TENSOR)):
        found = scheme(config, module)
        assert found is not None
        assert found.granularity is granularity


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens", "model.layers.0.mlp.gate", "transformer.wte"])
@pytest.mark.parametrize("config", [DEEPSEEK, CHANNEL], ids=["fp8", "compressed-tensors"])
def test_given_embeddings_heads_and_routers_then_they_stay(config: dict[str, Any], module: str) -> None:
    assert scheme(config, module) is None


@pytest.mark.parametrize("key", ["ignored_layers", "modules_to_not_convert"])
@pytest.mark.parametrize("entry", ["model.layers.0.mlp", "mlp.down_proj", "model.layers.0.mlp.down_proj", "down_proj"])
def test_given_modules_to_ignore_then_they_are_named_whole_or_by_their_first_or_last_parts(
    key: str, entry: str
) -> None:
    config = DEEPSEEK | {key: [entry]}
    assert scheme(config, "model.layers.0.mlp.down_proj") is None
    assert scheme(config, "model.layers.0.self_attn.down_proj_other") is not None
    assert scheme(config, "model.layers.00.mlp.up_proj") is not None


def test_given_a_config_with_a_text_model_then_that_one_counts() -> None:
    assert parse({"text_config": {"quantization_config": DEEPSEEK}}, "x").method == "fp8"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "awq"}, "quant_method 'awq'; weights are quantized for 'fp8' and 'compressed-tensors'"),
        (DEEPSEEK | {"fmt": "e5m2"}, "fmt 'e5m2'"),
        (DEEPSEEK | {"scale_fmt": "ue4m3"}, "scale_fmt 'ue4m3'"),
        (DEEPSEEK | {"weight_block_size": [128]}, "not two positive sizes"),
        (DEEPSEEK | {"ignored_layers": "lm_head"}, "where names of modules belong"),
        (
            CHANNEL | {"ignore": ["lm_head", "re:*gate"]},
            r"config\.json has 're:\*gate', .* no regular expression: nothing",
        ),
        (CHANNEL | {"config_groups": {}}, "no config_groups"),
        (CHANNEL | {"config_groups": {"g": {"targets": ["Linear"]}}}, r"config_groups\.g says nothing about weights"),
        (CHANNEL | {"config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}}}, "4 bits and type int"),
        (
            CHANNEL | {"config_groups": {"g": {"weights": {"num_bits": 8, "type": "float", "strategy": "group"}}}},
            "strategy 'group'; known are block, channel, tensor",
        ),
    ],
)
def test_given_a_config_with_something_unknown_then_it_is_refused_by_name(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        of(config)


def test_given_a_model_that_is_not_quantized_then_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"config\.json has no quantization_config"):
        parse({"hidden_size": 1}, "config.json")


def test_given_a_target_then_it_is_read_from_a_directory_or_from_its_configuration_alone(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_target(tmp_path)
    file.write_text(json.dumps({"quantization_config": DEEPSEEK}))
    assert read_target(file).tensors is None
    assert read_target(tmp_path).tensors is None
    save_file({"norm.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert read_target(tmp_path).tensors == {"norm.weight": TensorSpec("norm.weight", "F32", (3,))}
