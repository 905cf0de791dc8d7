"""An adapter is written as PEFT writes it: what PEFT loads from the files is what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ckpt_transport import CheckpointError, ConfigError, EngineError, ParameterServer
from ckpt_transport_vllm import Adapter, ServedAs, VllmFleet
from ckpt_transport_vllm.adapter_files import factors_of, save_adapter

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'ckpt-transport[frameworks]'")


def trained(**more: Any) -> Any:
    torch.manual_seed(1)
    base = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 8, "target_modules": ["0", "1"], "init_lora_weights": False}
    return peft.get_peft_model(base, peft.LoraConfig(**{**settings, **more}))


def test_given_a_model_of_peft_then_the_files_are_those_that_it_saves(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path / "theirs")
    save_adapter(tmp_path / "ours", factors_of(model.state_dict(), "default"), model.peft_config["default"])
    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]


def test_given_the_files_then_peft_merges_them_as_the_trained_adapter(tmp_path: Path) -> None:
    model = trained(use_rslora=True)
    settings = model.peft_config["default"]
    save_adapter(tmp_path / "sql", factors_of(model.state_dict(), "default"), settings)
    assert set(json.loads((tmp_path / "sql" / "adapter_config.json").read_text())["target_modules"]) == {"0", "1"}
    beneath = trained(use_rslora=True).unload()
    merged = peft.PeftModel.from_pretrained(beneath, tmp_path / "sql").merge_and_unload().state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in model.merge_and_unload().state_dict().items())


def test_given_no_factor_of_the_adapter_then_the_error_says_which_adapters_there_are() -> None:
    model = trained()
    with pytest.raises(CheckpointError, match="no factor of an adapter 'sql'; adapters that have some: 'default'"):
        factors_of(model.state_dict(), "sql")
    with pytest.raises(CheckpointError, match="adapters that have some: none"):
        factors_of({"weight": torch.zeros(2)}, "default")


def test_given_a_name_that_is_none_of_a_folder_then_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"an adapter cannot be called '\.\./sql'"):
        ServedAs("../sql", tmp_path)
    model = trained()
    with (
        brings_alone(model, tmp_path) as publish,
        pytest.raises(ConfigError, match=r"a version cannot be called '\.\.'"),
    ):
        publish("..", model.state_dict())
    assert not list(tmp_path.iterdir())


def test_given_a_server_that_is_not_there_then_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    model = trained()
    with brings_alone(model, tmp_path) as publish, pytest.raises(EngineError, match="does not answer") as raised:
        publish("step-1", model.state_dict())
    assert "'sql' is not served as 'step-1'" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_given_tensors_one_by_one_or_an_adapter_that_is_not_there_then_the_error_says_what_to_give(
    tmp_path: Path,
) -> None:
    model = trained()
    said = r"out of state_dict\(\) of PEFT's model; give that"
    with brings_alone(model, tmp_path) as publish, pytest.raises(CheckpointError, match=said):
        publish("step-1", iter(model.state_dict().items()))
    said = "there is no adapter 'chat'; there are: default"
    with brings_alone(model, tmp_path, "chat") as publish, pytest.raises(ConfigError, match=said):
        publish("step-1", model.state_dict())


@contextmanager
def brings_alone(model: Any, folder: Path, name: str = "default") -> Iterator[Callable[[str, Any], object]]:
    """Publishes a version to a server that is not there."""
    adapter = Adapter(model.peft_config, name, served=ServedAs("sql", folder))
    with ParameterServer(rank=0, world_size=1) as server, VllmFleet(["http://127.0.0.1:1"]) as fleet:
        yield lambda version, tensors: fleet.publish(server, version, tensors, adapter=adapter)
