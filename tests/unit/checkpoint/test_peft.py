"""What is merged on the way is what PEFT merges."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

from ckpt_transport import rules
from ckpt_transport.errors import ConfigError
from tests.unit.checkpoint.test_mapping import mapped

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft", reason="peft is not installed; make venv installs it where it can")
    transformers = pytest.importorskip("transformers", reason="peft needs it")

pytestmark = pytest.mark.filterwarnings("ignore")
"""Of PEFT and transformers."""
LINEARS = ["q_proj", "v_proj", "down_proj"]


def llama() -> torch.nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)  # type: ignore[no-any-return]


def gpt2() -> torch.nn.Module:
    config = transformers.GPT2Config(vocab_size=97, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def adapted(model: torch.nn.Module, **adapters: Any) -> Any:
    """The model with adapters, whose factors and other trained tensors have been trained for a while."""
    names = list(adapters)
    wrapped = peft.get_peft_model(model, adapters[names[0]], adapter_name=names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, adapters[name])
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return wrapped


def merged_by_peft(wrapped: Any, adapters: list[str] | None = None) -> dict[str, torch.Tensor]:
    merged = copy.deepcopy(wrapped).merge_and_unload(adapter_names=adapters)
    return dict(merged.state_dict())


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], base: dict[str, Any]) -> None:
    """What an adapter changes is as PEFT merges it but for the last digits; the rest in every bit."""
    changed = 0
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if torch.equal(tensor, base[name]):
            assert torch.equal(found[name], tensor)
        else:
            changed += 1
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert changed


@pytest.mark.parametrize("how", ["register", "lend"])
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (llama, {"r": 4, "lora_alpha": 16, "target_modules": LINEARS}),
        (llama, {"r": 4, "lora_alpha": 16, "target_modules": LINEARS, "use_rslora": True}),
        (
            llama,
            {
                "r": 4,
                "lora_alpha": 16,
                "target_modules": LINEARS,
                "rank_pattern": {"q_proj": 2},
                "alpha_pattern": {r"layers\.1\.self_attn\.v_proj": 5},
            },
        ),
        (
            llama,
            {"r": 2, "lora_alpha": 3, "target_modules": [*LINEARS, "embed_tokens"], "modules_to_save": ["lm_head"]},
        ),
        (gpt2, {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ],
    ids=["plain", "rank stabilized", "patterns", "embedding and saved", "conv1d"],
)
def test_given_an_adapter_then_the_merge_on_the_way_is_that_of_peft(model: Any, settings: Any, how: str) -> None:
    torch.manual_seed(0)
    base = model()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    wrapped = adapted(base, default=peft.LoraConfig(**settings))
    found = mapped(wrapped.state_dict(), *rules.of_peft(wrapped.peft_config), how=how)
    assert_same(found, merged_by_peft(wrapped), before)


def test_given_two_adapters_of_other_ranks_then_either_or_both_are_merged_as_by_peft() -> None:
    torch.manual_seed(0)
    base = llama()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    wrapped = adapted(
        base,
        sql=peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj"]),
        chat=peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "o_proj"], use_rslora=True),
    )
    for adapters in (["sql"], ["chat"], ["sql", "chat"]):
        found = mapped(wrapped.state_dict(), *rules.of_peft(wrapped.peft_config, adapters))
        assert_same(found, merged_by_peft(wrapped, adapters), before)


def test_given_bf16_weights_then_the_merge_on_the_way_is_at_least_as_exact_as_that_of_peft() -> None:
    torch.manual_seed(0)
    wrapped = adapted(llama().to(torch.bfloat16), default=peft.LoraConfig(r=4, lora_alpha=16, target_modules=LINEARS))
    exact = merged_by_peft(copy.deepcopy(wrapped).double())
    ours = mapped(wrapped.state_dict(), *rules.of_peft(wrapped.peft_config))
    theirs = merged_by_peft(wrapped)
    off = {
        who: sum(float((found[name] - exact[name]).abs().sum()) for name in exact)
        for who, found in (("ours", ours), ("theirs", theirs))
    }
    assert 0 < off["ours"] <= off["theirs"]
    assert all(tensor.dtype is torch.bfloat16 for tensor in ours.values())


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"use_dora": True}, "has use_dora"), ({"lora_bias": True}, "has lora_bias")],
)
def test_given_an_adapter_that_is_no_plain_product_then_it_is_refused_by_its_setting(settings: Any, said: str) -> None:
    config = peft.LoraConfig(target_modules=LINEARS, **settings)
    with pytest.raises(ConfigError, match=f"adapter 'default' {said}.*merge_and_unload"):
        rules.of_peft({"default": config})


def test_given_another_kind_of_adapter_or_none_of_that_name_then_it_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="adapter 'default' is of type IA3"):
        rules.of_peft({"default": peft.IA3Config()})
    with pytest.raises(ConfigError, match="there is no adapter 'sql'; there are: default"):
        rules.of_peft({"default": peft.LoraConfig()}, ["sql"])
