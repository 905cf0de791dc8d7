"""Commands bring a checkpoint to engines under other names and in other types."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_transport import Config
from tests.fleet import SinkSpec, fleet, model, weights
from tests.patience import PATIENT
from tests.support.commands import run
from tests.vllm_stub import StubServer

RULES = """
[[rules]]
rule = "strip"
prefix = "module."

[[rules]]
rule = "cast"
dtype = "BF16"
"""


def in_bfloat16(seed: int) -> torch.nn.Module:
    return model(seed).to(torch.bfloat16)


@pytest.mark.parametrize("mapping", ["rules.toml", "auto"])
def test_given_a_wrapped_checkpoint_in_fp32_then_a_mapping_brings_it_to_an_engine_in_bf16(
    tmp_path: Path, mapping: str
) -> None:
    save_file({f"module.{name}": tensor for name, tensor in weights(2).items()}, tmp_path / "model.safetensors")
    (tmp_path / "rules.toml").write_text(RULES)
    chosen = mapping if mapping == "auto" else tmp_path / mapping
    with fleet(SinkSpec(make=in_bfloat16)) as (sink,):
        update = ("update", "--checkpoint", tmp_path / "model.safetensors", "--version", "v2")
        done = run(*update, "--sink", sink.address, "--mapping", chosen)
        assert done.returncode == 0, done.stderr
        assert ("mapping: strip module.; cast BF16 .*" in done.stdout) == (mapping == "auto")
        assert "BF16 from F32" in done.stdout
        assert sink.state().holds({name: tensor.to(torch.bfloat16) for name, tensor in weights(2).items()})


def test_given_an_engine_at_an_endpoint_then_a_mapping_is_found_out_by_asking_its_sinks(tmp_path: Path) -> None:
    save_file(weights(2), tmp_path / "model.safetensors")
    update = ("update", "--checkpoint", tmp_path / "model.safetensors", "--version", "v2", "--mapping", "auto")
    with StubServer(Config.load(**PATIENT), module=in_bfloat16(1)) as server:
        done = run(*update, "--engine", "vllm", "--endpoint", server.url)
        assert done.returncode == 0, done.stderr
        assert "mapping: cast BF16 .*" in done.stdout


def test_given_a_file_that_says_no_rule_then_nothing_is_read_and_the_file_is_named(tmp_path: Path) -> None:
    save_file(weights(2), tmp_path / "model.safetensors")
    (tmp_path / "rules.toml").write_text('[[rules]]\nrule = "shuffle"\n')
    update = ("update", "--checkpoint", tmp_path / "model.safetensors", "--version", "v2", "--sink", "ipc:///tmp/none")
    done = run(*update, "--mapping", tmp_path / "rules.toml")
    assert done.returncode == 1
    assert "rules.toml" in done.stderr
    assert "shuffle" in done.stderr
