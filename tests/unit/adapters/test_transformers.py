"""A model of transformers is updated while it serves, by ``generate`` and by continuous batching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_transport import Config, Holder, Joiner, ParameterServer, UnwritableError
from tests.patience import PATIENT

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[frameworks]'")

from ckpt_transport_transformers import attach  # noqa: E402

PROMPT = list(range(1, 40))
PAGE = 8
"""Tokens; the prompt fills several pages, which later requests may share."""
CONFIG = Config.load(**PATIENT, transport="shm", commit="staged")


def model(seed: int, **changes: Any) -> Any:
    """A tiny model whose head is tied to its embeddings."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "initializer_range": 0.3}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads, **changes)).eval()


GREEDY = transformers.GenerationConfig(max_new_tokens=16, do_sample=False, eos_token_id=127, pad_token_id=0)


def tokens_of(served: Any) -> list[int]:
    """What the model says after the prompt."""
    found: list[int] = served.generate(torch.tensor([PROMPT]), generation_config=GREEDY)[0, len(PROMPT) :].tolist()
    return found


@contextmanager
def batching(served: Any) -> Iterator[Any]:
    """Continuous batching that shares the pages of equal prefixes."""
    settings = transformers.ContinuousBatchingConfig(num_blocks=256, page_size=PAGE, max_batch_tokens=64)
    manager = served.init_continuous_batching(generation_config=GREEDY, continuous_batching_config=settings)
    manager.start()
    try:
        yield manager
    finally:
        manager.stop(hard_stop=True)


def results(manager: Any, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while len(found) < count:
        result = manager.get_result(timeout=60)
        assert result is not None, "no result within 60 s"
        assert result.error is None
        found[result.request_id] = result
    return found


def asked(manager: Any, request: str) -> list[int]:
    manager.add_request(PROMPT, request_id=request, max_new_tokens=GREEDY.max_new_tokens)
    tokens: list[int] = results(manager, 1)[request].generated_tokens
    return tokens


def check_generating(served: Any, other: Any) -> None:
    """A model that generates speaks as each version, and as the one before again."""
    old, new = tokens_of(served), tokens_of(other)
    assert old != new
    with attach(served, version="v1", config=CONFIG) as attached, ParameterServer(CONFIG) as server:
        server.publish("v2", other.state_dict(), [attached.address])
        assert (attached.version, tokens_of(served)) == ("v2", new)
        server.rollback([attached.address])
        assert tokens_of(served) == old


def test_given_a_model_that_generates_then_it_speaks_as_each_version_and_as_the_one_before_again() -> None:
    check_generating(model(1), model(2))


def test_given_a_model_that_is_updated_in_place_then_it_speaks_as_each_version() -> None:
    served, other = model(1), model(2)
    old, new = tokens_of(served), tokens_of(other)
    first = {name: tensor.clone() for name, tensor in served.state_dict().items()}
    in_place = Config.load(**PATIENT, transport="shm", commit="in_place")
    with attach(served, version="v1", config=in_place) as attached, ParameterServer(in_place) as server:
        for version, tensors, expected in (("v2", other.state_dict(), new), ("v1 again", first, old)):
            report = server.publish(version, tensors, [attached.address])
            assert report is not None
            assert not report.staged
            assert (attached.version, tokens_of(served)) == (version, expected)


def test_given_steps_of_training_then_their_deltas_are_served() -> None:
    """The head is tied, and brought under one of its two names: both together would be two memories for one."""
    served, other = model(1), model(2)
    trained = {name: tensor for name, tensor in other.state_dict().items() if name != "lm_head.weight"}
    deltas = Config.load(**PATIENT, transport="shm", commit="auto", delta="on")
    with attach(served, version="v1", config=deltas) as attached, ParameterServer(deltas) as server:
        server.publish("step-0", trained, [attached.address])
        for number in (1, 2):
            with torch.no_grad():
                other.model.layers[0].mlp.up_proj.weight[number] += 1
            report = server.publish(f"step-{number}", trained, [attached.address])
            assert report is not None
            assert report.delta is not None
            assert report.delta.base == f"step-{number - 1}"
            assert tokens_of(served) == tokens_of(other)


def test_given_a_holder_then_a_model_that_serves_joins_what_it_holds(tmp_path: Path) -> None:
    served, other = model(1), model(2)
    tensors = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    config = Config.load(**PATIENT, transport="gloo")
    with (
        attach(served, version="v1", config=config) as attached,
        Holder("v2", tensors=tensors, config=config) as holder,
    ):
        holder.start().address_file.save(tmp_path / "holder.json", config)
        Joiner([tmp_path / "holder.json"], config).update("v2", [attached.address])
        assert (attached.version, tokens_of(served)) == ("v2", tokens_of(other))


def test_given_prefixes_that_requests_share_then_none_is_of_weights_that_are_not_served() -> None:
    """Given pages that the old weights have filled for a prompt, then a later request with that prompt uses none."""
    served, other = model(1), model(2)
    old, new = tokens_of(served), tokens_of(other)
    with (
        attach(served, version="v1", config=CONFIG) as attached,
        ParameterServer(CONFIG) as server,
        batching(served) as manager,
    ):
        assert asked(manager, "before") == old
        assert _shared_pages(manager) > 0
        server.publish("v2", other.state_dict(), [attached.address])
        assert _shared_pages(manager) == 0
        assert [asked(manager, name) for name in ("after", "sharing")] == [new, new]
        server.rollback([attached.address])
        assert asked(manager, "back") == old


def test_given_a_request_under_way_then_it_goes_on_and_later_ones_do_not_share_its_pages() -> None:
    served, other = model(1), model(2)
    new = tokens_of(other)
    with (
        attach(served, version="v1", config=CONFIG) as attached,
        ParameterServer(CONFIG) as server,
        batching(served) as manager,
    ):
        manager.add_request(PROMPT, request_id="long", max_new_tokens=400, eos_token_id=-1)
        server.publish("v2", other.state_dict(), [attached.address])
        manager.add_request(PROMPT, request_id="later", max_new_tokens=GREEDY.max_new_tokens)
        found = results(manager, 2)
        assert len(found["long"].generated_tokens) == 400
        assert found["later"].generated_tokens == new


def test_given_an_update_that_fails_then_requests_go_on_as_before() -> None:
    served = model(1)
    old = tokens_of(served)
    with (
        attach(served, version="v1", config=CONFIG) as attached,
        ParameterServer(CONFIG) as server,
        batching(served) as manager,
    ):
        with pytest.raises(Exception, match="it changed nothing"):
            server.publish("v2", {"unknown": torch.zeros(3)}, [attached.address])
        assert asked(manager, "after") == old


def test_given_a_model_that_is_not_attached_any_more_then_it_is_as_it_was() -> None:
    served = model(1)
    made, forward = served.init_continuous_batching, served.forward
    with attach(served, config=CONFIG):
        assert "init_continuous_batching" in vars(served)
    assert "init_continuous_batching" not in vars(served)
    assert (served.init_continuous_batching, served.forward) == (made, forward)


def test_given_a_checkpoint_with_experts_one_by_one_then_a_model_that_has_them_fused_takes_it(tmp_path: Path) -> None:
    shape = {"vocab_size": 64, "hidden_size": 32, "moe_intermediate_size": 16, "num_experts": 4, "num_hidden_layers": 1}
    heads = {"num_experts_per_tok": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.Qwen3MoeConfig(**shape, **heads)
    served, other = (transformers.Qwen3MoeForCausalLM(config).eval() for _ in range(2))
    other.save_pretrained(tmp_path)
    with attach(served, version="v1", config=CONFIG) as attached:
        known = Config.load(**PATIENT, transport="shm", sinks=(attached.address,))
        with ParameterServer(known) as server:
            server.register("v2", directory=tmp_path, mapping="auto")
            server.update("v2")
    wanted = other.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in served.state_dict().items())


def torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return transformers.TorchAoConfig(Int8WeightOnlyConfig())


def bitsandbytes() -> Any:
    return transformers.BitsAndBytesConfig(load_in_8bit=True)


@pytest.mark.parametrize("method", [torchao, bitsandbytes], ids=lambda method: method.__name__)
def test_given_a_quantized_model_then_it_is_refused_by_the_name_of_the_method(
    method: Callable[[], Any], tmp_path: Path
) -> None:
    pytest.importorskip(method.__name__, reason=f"needs {method.__name__}")
    model(1).save_pretrained(tmp_path)
    served = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=method())
    with pytest.raises(UnwritableError, match=rf"is quantized \({method.__name__}\)"):
        attach(served, config=CONFIG)


def _shared_pages(manager: Any) -> int:
    """How many pages hold a prefix that a request may share."""
    return sum(len(each.ledger.hash_to_block) for each in manager.batch_processor.cache.cache_allocators.values())
