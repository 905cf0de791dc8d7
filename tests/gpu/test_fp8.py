"""Given BF16 weights, when a GPU makes FP8 of them, then the bits are the CPU's; and vLLM serves what it is given."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import CheckpointError
from ckpt_transport.spi import Launch
from ckpt_transport_fp8 import backend, quantized
from ckpt_transport_fp8.numerics import factors_for, scales_for
from ckpt_transport_fp8.scheme import Scheme
from tests.fleet import SinkSpec, fleet
from tests.fp8_models import by_reference, fp8_model, fp8_weights, source_weights
from tests.fp8_models import target as model_target
from tests.leftovers import left_behind
from tests.patience import PATIENT, SWIFT
from tests.unit.adapters.test_fp8_quantized import CPU, NAME, SCHEMES, bytes_of, target, weight
from tests.vllm.fp8_modes import MODES, Case, not_served, run

GPU = torch.device("cuda", 0)
SHAPES = [(256, 512), (300, 200), (1, 1), (129, 4096), (4096, 130), (16, 48), (1000, 1024)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
has_vllm = importlib.util.find_spec("vllm") is not None


@pytest.fixture(params=["Triton", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two ways of computing on a GPU is taken."""
    if request.param == "torch":
        monkeypatch.setattr(backend, "has_triton", lambda device: False)
    elif not backend.has_triton(GPU):
        pytest.skip("this GPU, or this environment, has none")
    return str(request.param)


def many(dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    weights = {NAME.replace("0", str(n)): weight(*shape, dtype, seed + n) for n, shape in enumerate(SHAPES)}
    return weights | {"model.norm.weight": torch.randn(100, generator=torch.Generator().manual_seed(seed)).to(dtype)}


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def on_gpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(GPU)


def at_odd_address(tensor: torch.Tensor) -> torch.Tensor:
    """On the GPU, where no more than one element can be loaded at once."""
    return torch.cat([tensor.new_zeros(1), tensor.view(-1)]).to(GPU)[1:].view(tensor.shape)


def test_given_aligned_memory_then_kernels_load_and_store_sixteen_bytes_at_once() -> None:
    """What they may suppose of their arguments reaches the code that Triton makes."""
    if not backend.has_triton(GPU):
        pytest.skip("this GPU, or this environment, has none")
    from ckpt_transport_fp8 import triton_backend

    made: list[Launch] = []

    def launch(kernel: Any, warps: int, **constants: object) -> Launch:
        made.append(Launch(kernel, warps, **constants))
        return made[-1]

    wanted = {"find_amax": ["ld.global.v4"], "cast": ["ld.global.v4", "st.global.v4"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_backend, "Launch", launch)
        bytes_of(quantized({NAME: on_gpu(weight(256, 512, torch.bfloat16, 0))}, target(SCHEMES["block"]), GPU))
    compiled = {launch.compiled.name: launch.compiled for launch in made if launch.compiled is not None}
    assert compiled.keys() == wanted.keys()
    for name, instructions in wanted.items():
        for instruction in instructions:
            assert instruction in compiled[name].asm["ptx"], f"{name} has no {instruction}"


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", [on_gpu, on_host, at_odd_address])
def test_given_weights_on_a_gpu_then_every_bit_is_as_on_the_cpu(
    way: str, scheme: Any, dtype: torch.dtype, where: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Many matrices in one version, the second of its kind, and buckets that end anywhere."""
    known = target(scheme)
    before = quantized({name: where(tensor) for name, tensor in many(dtype, 100).items()}, known, GPU)
    weights = many(dtype, 0)
    expected = bytes_of(quantized(weights, target(scheme), CPU))
    loan = quantized({name: where(tensor) for name, tensor in weights.items()}, known, GPU)
    assert loan.backing is not None
    ends = [place.offset + place.nbytes for place in loan.tensors]
    size = loan.backing.nbytes
    for cuts in ([], [256], list(range(0, size, 65536)), list(range(0, size, 768 * 7)), ends):
        found = bytes_of(loan, cuts)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), f"{name} differs, by way of {way}"
    found = bytes_of(before)
    for name, tensor in bytes_of(quantized(many(dtype, 100), target(scheme), CPU)).items():
        assert torch.equal(found[name], tensor), f"{name} of the version before differs, by way of {way}"


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_given_all_magnitudes_then_scales_and_factors_are_as_on_the_cpu(scheme: Scheme, dtype: torch.dtype) -> None:
    """Every float32 of every 97th bit pattern, to the largest BF16."""
    largest = torch.arange(0, 0x7F7F0000, 97, dtype=torch.int32).view(torch.float32)
    expected = scales_for(largest, scheme, dtype)
    found = scales_for(largest.to(GPU), scheme, dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(found.cpu().view(bits), expected.view(bits))
    assert torch.equal(factors_for(found).cpu().view(torch.int32), factors_for(expected).view(torch.int32))


def test_given_slots_on_a_gpu_then_they_are_filled_there(way: str) -> None:
    weights = {NAME: weight(3000, 2000, torch.bfloat16, 0)}
    expected = bytes_of(quantized(weights, target(SCHEMES["block"]), CPU))[NAME]
    loan = quantized({NAME: weights[NAME].to(GPU)}, target(SCHEMES["block"]))
    assert loan.backing is not None
    slot = torch.zeros(loan.backing.nbytes, dtype=torch.uint8, device=GPU)
    loan.backing.fill(slot, 0)
    assert torch.equal(slot[: expected.numel()].cpu(), expected), way


def test_given_elements_that_are_computed_anywhere_then_a_slot_is_filled_in_the_order_of_its_stream() -> None:
    """Given a slot that the device still reads, when it is filled from the host, then what is read is the old bytes."""
    loan = quantized({NAME: weight(300, 200, torch.bfloat16, 0)}, target(SCHEMES["block"]), CPU)
    assert loan.backing is not None
    slot = torch.zeros(loan.backing.nbytes, dtype=torch.uint8, device=GPU)
    with torch.cuda.stream(torch.cuda.Stream(GPU)):  # type: ignore[no-untyped-call]
        torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]
        read = slot.clone()
        loan.backing.fill(slot, 0)
        torch.cuda.current_stream(GPU).synchronize()
    assert not read.any()
    assert slot.any()


def test_given_the_current_gpu_then_it_needs_no_number() -> None:
    weights = {NAME: on_gpu(weight(300, 200, torch.bfloat16, 0))}
    loan = quantized(weights, target(SCHEMES["block"]), torch.device("cuda"))
    expected = bytes_of(quantized(weights, target(SCHEMES["block"]), GPU))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in bytes_of(loan).items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_given_nan_or_infinity_on_a_gpu_then_it_is_refused_there_too(way: str, value: float) -> None:
    source = torch.randn(200, 150, device=GPU).bfloat16()
    source[199, 149] = value
    for scheme in SCHEMES.values():
        with pytest.raises(CheckpointError, match=rf"{NAME} .* NaN or infinity"):
            quantized({NAME: source}, target(scheme))


@pytest.mark.parametrize("bucket", ["20KiB", "64MiB"])
@pytest.mark.parametrize("transport", ["cuda_ipc", "shm", "gloo"])
@pytest.mark.parametrize("trainer", ["cuda", "cpu"])
def test_given_models_on_a_gpu_then_they_get_exactly_the_references_bytes(
    trainer: str, transport: str, bucket: str
) -> None:
    settings = Config.load(**{**SWIFT, "heartbeat_timeout": 5.0, "transport": transport, "bucket_bytes": bucket})
    with fleet(SinkSpec({"device": "cuda"}, make=fp8_model)) as (sink,), ParameterServer(settings) as server:
        for seed in (2, 3):
            weights = {name: tensor.to(trainer) for name, tensor in source_weights(seed).items()}
            server.lend(f"v{seed}", quantized(weights, model_target()))
            server.update(f"v{seed}", [sink.address])
            assert sink.state().holds(fp8_weights(seed))
    assert not left_behind()


@pytest.mark.parametrize("engine", ["cuda", "cpu"])
@pytest.mark.parametrize("trainer", ["cuda", "cpu"])
def test_given_deltas_then_fp8_is_compared_on_the_gpu_that_makes_it_and_gives_the_references_bytes(
    way: str, trainer: str, engine: str
) -> None:
    settings = Config.load(**PATIENT, delta="on", commit="auto")
    with fleet(SinkSpec({"device": engine}, make=fp8_model)) as (sink,), ParameterServer(settings) as server:
        weights, to = source_weights(2), model_target()
        for number in range(4):
            for tensor in weights.values():
                tensor.view(-1)[number] += 1.0
            weights["0.weight"][number, number] = 8.0 + number
            made = quantized({name: tensor.to(trainer) for name, tensor in weights.items()}, to)
            report = server.publish(f"step-{number}", made, [sink.address])
            assert report is not None
            assert report.delta is not None
            assert "where it is computed" in report.intake, way
            assert report.delta.base == (f"step-{number - 1}" if number else ""), report.delta.reason
            assert sink.state().holds(by_reference(weights))
        server.rollback([sink.address])
    assert not left_behind()


@pytest.mark.skipif(not has_vllm, reason="needs vLLM")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", ["qwen3", "moe"])
@pytest.mark.parametrize("mode", MODES)
def test_given_vllm_on_a_gpu_when_it_is_updated_then_it_is_as_if_it_had_been_started_so(mode: str, family: str) -> None:
    """As ``python -m tests.vllm.fp8_modes --transport cuda_ipc``; VLLM_ARGUMENTS may hold arguments of LLM."""
    if why := not_served(mode, family):
        pytest.skip(why)
    with tempfile.TemporaryDirectory() as folder:
        assert "updates" in run(Case(Path(folder), mode, family, 1), "cuda_ipc")
