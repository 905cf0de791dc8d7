"""BF16 weights that become FP8 on their way into models in other processes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckpt_transport import Config, ParameterServer
from ckpt_transport.checkpoint.quantizers import quantizer_for
from ckpt_transport.errors import CheckpointError, ConfigError, UpdateAbortedError
from ckpt_transport.execution.timeline import StageEvent
from ckpt_transport.planning import StageKind
from ckpt_transport_fp8 import quantized
from ckpt_transport_torch import attach
from tests.fleet import SinkSpec, by_name, fleet
from tests.fp8_models import CONFIG, fp8_model, fp8_weights, source_weights, target
from tests.patience import PATIENT
from tests.support.commands import run

TRANSPORTS = ("shm", "gloo")


@pytest.mark.parametrize("bucket", ["20KiB", "1MiB"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_models_with_fp8_weights_then_they_get_exactly_the_references_bytes(transport: str, bucket: str) -> None:
    """Given FP8 sinks, when BF16 weights are lent for them in whole and split buckets, then they hold the reference."""
    settings = Config.load(transport=transport, bucket_bytes=bucket, **PATIENT)
    sinks = SinkSpec(make=fp8_model), SinkSpec(make=fp8_model, loader=by_name if bucket == "1MiB" else None)
    with fleet(*sinks) as running, ParameterServer(settings) as server:
        for seed in (2, 3):
            weights = source_weights(seed)
            server.lend(f"v{seed}", quantized(weights, target()))
            report = server.update(f"v{seed}", [sink.address for sink in running])
            assert report is not None
            sent = sum(bucket.nbytes for bucket in report.plan.buckets)
            assert sent < 0.52 * sum(tensor.nbytes for tensor in weights.values())
            assert any(piece.tensor_offset for each in report.plan.buckets for piece in each.pieces) == (
                bucket == "20KiB"
            )
            for sink in running:
                state = sink.state()
                assert state.holds(fp8_weights(seed))
                assert state.served == ""


def test_given_quantizing_then_it_overlaps_with_sending_and_applying() -> None:
    """Given many buckets, then some are computed while others travel or are applied."""
    settings = Config.load(transport="gloo", bucket_bytes="64KiB", **PATIENT)
    with fleet(SinkSpec({"layers": 40}, make=fp8_model)) as (sink,), ParameterServer(settings) as server:
        server.lend("v2", quantized(source_weights(2, 40), target()))
        report = server.update("v2", [sink.address])
        assert report is not None
        assert sink.state().holds(fp8_weights(2, 40))
        fills = [event for event in report.timeline if event.kind is StageKind.FILL]
        others = [event for event in report.timeline if event.kind is not StageKind.FILL]
        assert any(_overlap(fill, other) for fill in fills for other in others if fill.bucket != other.bucket)


def _overlap(one: StageEvent, other: StageEvent) -> bool:
    return one.start < other.end and other.start < one.end


def test_given_two_sources_then_each_quantizes_a_share(tmp_path: Path) -> None:
    """Given a BF16 checkpoint that two source ranks share, then each makes FP8 of its own part."""
    save_file(source_weights(2), tmp_path / "model.safetensors")
    module = fp8_model(1)
    with attach(module) as serving, ThreadPoolExecutor(2) as threads:

        def update(rank: int) -> list[str]:
            settings = Config.load(coordinator=f"{serving.address}-coordinator", **PATIENT)
            with ParameterServer(settings, rank=rank, world_size=2) as server:
                lent = server.lend("v2", quantized(server.register("bf16", directory=tmp_path), target()))
                server.update("v2", [serving.address])
                return [place.spec.name for place in lent.manifest.tensors]

        shares = list(threads.map(update, range(2)))
        assert all(shares)
        assert sorted(shares[0] + shares[1]) == sorted(fp8_weights(2))
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor.view(torch.uint8), fp8_weights(2)[name].view(torch.uint8)), name


def test_given_plain_fp8_versions_then_they_need_no_adapter() -> None:
    """Given a checkpoint that is FP8 already, then it is copied into FP8 parameters, which keep their storage."""
    module = fp8_model(1)
    pointers = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    with attach(module) as serving, ParameterServer(Config.load(**PATIENT)) as server:
        server.register("v2", tensors=fp8_weights(2))
        server.update("v2", [serving.address])
        found = module.state_dict()
        expected = fp8_weights(2)
        for name, tensor in found.items():
            assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8)), name
            assert tensor.data_ptr() == pointers[name]
        assert module(torch.ones(1, 200)).isfinite().all()


def test_given_weights_that_are_not_made_for_the_model_then_they_are_refused_before_the_first_byte() -> None:
    """Given an FP8 model, when BF16 tensors come as they are, then their name is said and nothing changes."""
    module = fp8_model(1)
    with attach(module) as serving, ParameterServer(Config.load(**PATIENT)) as server:
        server.register("bf16", tensors=source_weights(2))
        with pytest.raises(UpdateAbortedError, match=r"tensor 0\.weight is BF16 .* and F8_E4M3 .* changed nothing"):
            server.update("bf16", [serving.address])
        missing = fp8_weights(2)
        del missing["1.weight_scale_inv"]
        server.register("missing", tensors=missing)
        with pytest.raises(UpdateAbortedError, match=r"lacks tensor 1\.weight_scale_inv"):
            server.update("missing", [serving.address])
        wrong = fp8_weights(2)
        wrong["1.weight_scale_inv"] = torch.ones(1, 1)
        server.register("wrong", tensors=wrong)
        with pytest.raises(UpdateAbortedError, match=r"1\.weight_scale_inv is F32 \[1, 1\]"):
            server.update("wrong", [serving.address])
        poisoned = source_weights(2)
        poisoned["3.weight"][-1, -1] = float("nan")
        with pytest.raises(CheckpointError, match=r"tensor 3\.weight .* NaN"):
            server.lend("poisoned", quantized(poisoned, target()))
        assert serving.version == ""
        assert all(
            torch.equal(tensor.view(torch.uint8), fp8_weights(1)[name].view(torch.uint8))
            for name, tensor in module.state_dict().items()
        )


def test_given_the_plan_of_a_version_then_the_next_uses_it_only_if_it_was_made_in_the_same_way() -> None:
    """Given FP32 weights in place of BF16 ones, then the digest is another although names and sizes are the same."""
    module = fp8_model(1)
    with attach(module) as serving, ParameterServer(Config.load(**PATIENT)) as server:
        shapes = []
        for version, dtype in (("v2", torch.bfloat16), ("v3", torch.bfloat16), ("v4", torch.float32)):
            weights = source_weights(2, dtype=dtype)
            weights |= {name: tensor.bfloat16() for name, tensor in weights.items() if tensor.dim() == 1}
            server.lend(version, quantized(weights, target()))
            report = server.update(version, [serving.address])
            assert report is not None
            shapes.append(report.plan.shape)
            expected = fp8_weights(2, dtype=dtype)
            for name, tensor in module.state_dict().items():
                assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8)), name
        assert shapes[0] == shapes[1] != shapes[2]


def test_given_the_configuration_of_an_fp8_model_then_the_command_quantizes_for_it(tmp_path: Path) -> None:
    """Given BF16 files and the configuration of an FP8 model, then ``update --quantize-for`` brings the reference."""
    save_file(source_weights(2), tmp_path / "model.safetensors")
    target = tmp_path / "config.json"
    target.write_text(json.dumps(CONFIG))
    update = ["update", f"--checkpoint={tmp_path / 'model.safetensors'}", "--version=v2", f"--quantize-for={target}"]
    with fleet(SinkSpec(make=fp8_model)) as (sink,):
        done = run(*update, f"--sink={sink.address}")
        assert done.returncode == 0, done.stderr
        assert "8 tensors: F8_E4M3 with a scale for each block of 128 x 128" in done.stdout
        assert sink.state().holds(fp8_weights(2))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "has no quantization_config: engines that are started from it take BF16"),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq' of .*; there are: compressed-tensors, fp8"),
    ],
)
def test_given_a_target_that_nobody_quantizes_for_then_it_is_refused(
    tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=said):
        quantizer_for(tmp_path)
