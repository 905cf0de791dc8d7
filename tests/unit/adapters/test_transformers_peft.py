"""A model that PEFT has wrapped is updated while it serves, with its adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer, UnwritableError, UpdateAbortedError
from tests.patience import PATIENT
from tests.unit.adapters.test_transformers import CONFIG, PROMPT, asked, batching, check_generating, model, tokens_of

peft = pytest.importorskip("peft", reason="needs peft: pip install -e '.[frameworks]'")

from ckpt_transport_transformers import attach  # noqa: E402

ADAPTER = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)


def tuned(seed: int) -> Any:
    """A model with an adapter that says something else than the model without."""
    return peft.get_peft_model(model(seed), ADAPTER).eval()


def test_given_a_model_with_an_adapter_then_it_speaks_as_each_version_and_as_the_one_before_again() -> None:
    check_generating(tuned(1), tuned(2))


@pytest.mark.parametrize("trains_adapter", [True, False])
def test_given_an_adapter_or_the_weights_beneath_then_each_is_brought_without_the_other(trains_adapter: bool) -> None:
    served, other = tuned(1), tuned(2)
    in_place = Config.load(**PATIENT, transport="shm", commit="in_place")
    with attach(served, version="v1", config=in_place) as attached, ParameterServer(in_place) as server:
        server.publish("v2", other.state_dict(), [attached.address])
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                if ("lora_" in name) == trains_adapter and "layers" in name:
                    parameter.mul_(-3)
        trained = {name: each for name, each in other.state_dict().items() if ("lora_" in name) == trains_adapter}
        before = tokens_of(served)
        server.publish("v3", trained, [attached.address], base="v2")
        assert tokens_of(served) == tokens_of(other) != before


def test_given_an_adapter_when_the_model_generates_then_each_of_its_passes_goes_through_the_gate() -> None:
    served = tuned(1)
    with attach(served, config=CONFIG) as attached:
        begun = attached.gate.started
        tokens_of(served)
        assert attached.gate.started - begun >= 16
        begun = attached.gate.started
        served(torch.tensor([PROMPT]))
        assert attached.gate.started - begun == 1


def test_given_an_adapter_when_batches_run_then_they_are_halted_and_go_on_with_the_new_version() -> None:
    served, other = tuned(1), tuned(2)
    old, new = tokens_of(served), tokens_of(other)
    with (
        attach(served, version="v1", config=CONFIG) as attached,
        ParameterServer(CONFIG) as server,
        batching(served) as manager,
    ):
        assert asked(manager, "before") == old
        server.publish("v2", other.state_dict(), [attached.address])
        assert asked(manager, "after") == new


def test_given_an_adapter_that_is_merged_then_updates_are_refused_until_it_is_not() -> None:
    served, other = tuned(1), tuned(2)
    with attach(served, version="v1", config=CONFIG) as attached, ParameterServer(CONFIG) as server:
        served.merge_adapter()
        merged = tokens_of(served)
        with pytest.raises(UpdateAbortedError, match=r"q_proj cannot be updated: the adapter 'default' is merged"):
            server.publish("v2", other.state_dict(), [attached.address])
        assert tokens_of(served) == merged
        served.unmerge_adapter()
        server.publish("v2", other.state_dict(), [attached.address])
        assert tokens_of(served) == tokens_of(other)


def test_given_an_adapter_that_transformers_has_put_in_when_it_is_merged_then_attach_refuses() -> None:
    served = model(1)
    served.add_adapter(ADAPTER)
    with attach(served, config=CONFIG):
        pass
    for module in served.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.merge()
    with pytest.raises(UnwritableError, match="the adapter 'default' is merged"):
        attach(served, config=CONFIG)


def test_given_a_trained_prompt_then_it_is_refused_by_name_and_the_model_inside_is_not() -> None:
    served = peft.get_peft_model(model(1), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(UnwritableError, match=r"prompt_encoder.default.embedding.weight cannot be updated"):
        attach(served, config=CONFIG)
    with attach(served.get_base_model(), config=CONFIG):
        pass
