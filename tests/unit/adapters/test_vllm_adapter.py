"""What of the adapter for vLLM can be tried without vLLM; the rest is in tests/vllm."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckpt_transport import Config
from ckpt_transport.cli import served
from ckpt_transport.errors import ConfigError, EngineError, PlanMismatchError
from ckpt_transport.planning import TensorSpec
from ckpt_transport.service.fleet import make_fleet
from ckpt_transport_vllm import VllmFleet
from ckpt_transport_vllm.graph_tensors import GraphTensors
from ckpt_transport_vllm.quantization import check_quantization, check_tensors
from ckpt_transport_vllm.quiesce import LentThread, WorkerGate
from ckpt_transport_vllm.replicas import in_lockstep, replicas_of
from ckpt_transport_vllm.server import VllmServer
from ckpt_transport_vllm.updated_model import UpdatedModel
from ckpt_transport_vllm.versions import RELEASES, check_draft, check_parallel

NOBODY = "http://127.0.0.1:9"
PATIENCE = 120.0


@pytest.mark.parametrize("version", ["0.25.1", "0.32.0+cpu", "0.33.0", "0.30.2rc1"])
def test_given_a_vllm_inside_the_supported_range_then_it_is_accepted(version: str) -> None:
    RELEASES.check(version)


@pytest.mark.parametrize("version", ["0.24.9", "0.34.0", "1.0.0", "dev"])
def test_given_another_vllm_then_it_is_refused_and_the_range_is_named(version: str) -> None:
    with pytest.raises(ConfigError, match=rf"vLLM {version} is not supported.* 0\.25 to 0\.33"):
        RELEASES.check(version)


def test_given_expert_load_balancing_then_the_engine_is_refused() -> None:
    check_parallel(SimpleNamespace(enable_eplb=False))
    check_parallel(SimpleNamespace())
    with pytest.raises(ConfigError, match="--enable-eplb"):
        check_parallel(SimpleNamespace(enable_eplb=True))


def test_given_a_draft_model_with_a_quantized_copy_of_the_head_then_it_is_refused() -> None:
    check_draft(SimpleNamespace(draft_lm_head_quantization=None))
    check_draft(SimpleNamespace())
    with pytest.raises(ConfigError, match="draft_lm_head_quantization"):
        check_draft(SimpleNamespace(draft_lm_head_quantization="fp8"))


@pytest.mark.parametrize(
    ("parallel_config", "count"),
    [
        ({}, 1),
        ({"data_parallel_size": 4}, 4),
        ({"data_parallel_size": 4, "data_parallel_size_local": 2, "data_parallel_hybrid_lb": True}, 2),
        ({"data_parallel_size": 4, "data_parallel_external_lb": True}, 1),
    ],
)
def test_given_data_parallelism_then_replicas_behind_one_endpoint_are_counted(
    parallel_config: dict[str, Any], count: int
) -> None:
    assert replicas_of(parallel_config) == count


def test_given_replicas_that_share_experts_then_they_are_in_lockstep_behind_one_endpoint_or_several() -> None:
    assert in_lockstep({"data_parallel_size": 2, "is_moe_model": True, "data_parallel_external_lb": True})
    assert not in_lockstep({"data_parallel_size": 1, "is_moe_model": True})
    assert not in_lockstep({"data_parallel_size": 2, "is_moe_model": False})


def test_given_a_thread_that_is_lent_then_it_comes_back_when_the_update_has_ended() -> None:
    turn = LentThread()
    with ThreadPoolExecutor(1) as worker:
        assert turn.hold() == 0
        lent = worker.submit(turn.lend, PATIENCE)
        turn.advance(0, PATIENCE)
        assert not lent.done()
        assert turn.resume() > 0
        lent.result(PATIENCE)


def test_given_a_thread_that_is_not_lent_then_holding_ends_by_its_deadline() -> None:
    turn = LentThread()
    turn.hold()
    with pytest.raises(TimeoutError, match="update_weights"):
        turn.advance(0, 0.05)


def test_given_no_update_then_a_lent_thread_comes_back_after_its_patience() -> None:
    started = time.monotonic()
    LentThread().lend(0.05)
    assert time.monotonic() - started >= 0.05


class Worker:
    """As much of a vLLM worker as a gate needs."""

    def __init__(self) -> None:
        self.steps = 0

    def execute_model(self, request: object) -> str:
        self.steps += 1
        return f"answer to {request}"


def test_given_a_tainted_worker_then_its_steps_wait_and_do_not_raise_until_an_update_succeeds() -> None:
    worker = Worker()
    gate = WorkerGate(worker)
    assert worker.execute_model("one") == "answer to one"
    assert gate.hold() == 1
    gate.advance(1, PATIENCE)
    gate.taint("a mix")
    stepping = threading.Thread(target=worker.execute_model, args=("two",))
    stepping.start()
    stepping.join(0.1)
    assert stepping.is_alive()
    assert worker.steps == 1
    gate.resume()
    stepping.join(PATIENCE)
    assert not stepping.is_alive()
    assert worker.steps == 2


@dataclass(frozen=True)
class Step:
    """As much of what vLLM schedules as a gate needs."""

    total_num_scheduled_tokens: int


def test_given_a_tainted_worker_when_a_step_has_no_tokens_then_it_does_not_wait_and_is_no_pass() -> None:
    worker = Worker()
    gate = WorkerGate(worker)
    worker.execute_model(Step(3))
    worker.execute_model(Step(0))
    assert gate.hold() == 1
    gate.advance(1, PATIENCE)
    gate.taint("a mix")
    assert worker.execute_model(Step(0)) == "answer to Step(total_num_scheduled_tokens=0)"


class Bare(BaseHTTPRequestHandler):
    """A server that is healthy and has nothing else, as a vLLM without its development routes."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def bare() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Bare) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_given_a_server_without_development_routes_then_the_error_says_how_to_open_them(bare: str) -> None:
    with VllmServer(bare) as server:
        server.wait(PATIENCE)
        with pytest.raises(EngineError, match=r"has no /server_info: start vLLM with VLLM_SERVER_DEV_MODE=1"):
            server.configuration()
        assert server.weight_version() == ""
        server.label("a version that it has no name for")
        server.reset_caches()


def test_given_nobody_at_an_endpoint_then_the_error_names_it() -> None:
    with VllmServer(NOBODY) as server:
        with pytest.raises(EngineError, match=f"{NOBODY} is not healthy after 0 s"):
            server.wait(0.0)
        with pytest.raises(EngineError, match=f"{NOBODY}/pause does not answer"):
            server.pause("keep", 1.0)


@pytest.mark.parametrize(
    ("endpoints", "pause", "said"),
    [
        ([], "keep", "at least one endpoint"),
        ([NOBODY, f"{NOBODY}/"], "keep", "named twice"),
        ([NOBODY], "soon", "must be one of keep, wait, abort, none"),
    ],
)
def test_given_a_fleet_that_makes_no_sense_then_it_is_refused(endpoints: list[str], pause: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        VllmFleet(endpoints, pause=pause)


def test_given_the_name_of_an_engine_then_it_is_found_and_others_are_refused_with_a_list() -> None:
    fleet = make_fleet("vllm", [NOBODY], Config(), "keep", False)
    fleet.close()
    assert isinstance(fleet, VllmFleet)
    with pytest.raises(ConfigError, match=r"called 'nothing'; there are: .*vllm"):
        make_fleet("nothing", [NOBODY], Config(), "keep", False)


def test_given_what_was_served_last_then_it_is_remembered_until_its_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    checkpoint = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(4)}, checkpoint)
    assert served.recall() is None
    served.remember("vllm", "step-1", checkpoint, ("one", "two"))
    served.remember("vllm", "step-1", checkpoint, ("three",))
    known = served.recall()
    assert known is not None
    assert (known.version, known.checkpoint, known.endpoints) == ("step-1", str(checkpoint), ("one", "two", "three"))
    served.check_unchanged(known)

    save_file({"weight": torch.zeros(5)}, checkpoint)
    with pytest.raises(ConfigError, match="has changed since"):
        served.check_unchanged(known)
    served.remember("vllm", "step-2", checkpoint, ("four",))
    again = served.recall()
    assert again is not None
    assert again.endpoints == ("four",)
    checkpoint.unlink()
    with pytest.raises(ConfigError, match="is gone"):
        served.check_unchanged(again)


def a_target(method: str | None, config: dict[str, Any]) -> UpdatedModel:
    """A model of that quantization, as far as checks look at it."""
    hf_config = SimpleNamespace(to_dict=lambda: config)
    model_config = SimpleNamespace(quantization=method, hf_config=hf_config, model="a/model")
    return UpdatedModel(torch.nn.Module(), model_config, None)


class Attention(torch.nn.Module):
    """As MLA before vLLM 0.32: what it derives from its weight is a new tensor after every reload."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))
        self.derive(1.0)

    def derive(self, value: float) -> None:
        self.W_UV = torch.full((2, 3), value).t()
        self.quant_method = SimpleNamespace(moe_quant_config=SimpleNamespace(_w1=SimpleNamespace(scale=None)))
        self.quant_method.moe_quant_config._w1.scale = torch.full((2,), value)


def test_given_tensors_that_graphs_refer_to_then_new_values_are_where_the_old_ones_were() -> None:
    module = Attention()

    def tensors() -> list[torch.Tensor]:
        return [module.W_UV, module.quant_method.moe_quant_config._w1.scale]

    before = tensors()
    addresses = GraphTensors([module], lambda each: isinstance(each, Attention))
    module.derive(2.0)
    addresses.bring_back()
    for old, now in zip(before, tensors(), strict=True):
        assert now is old
        assert now.eq(2.0).all()
    module.W_UV = torch.zeros(5)
    addresses.bring_back()
    assert module.W_UV.shape == (5,), "a tensor of another shape has taken its place"


BLOCKS = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
WEIGHT, SCALE = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight_scale_inv"


@pytest.mark.parametrize("method", [None, "fp8", "fp8_per_tensor", "fp8_per_block", "fp8_per_channel"])
def test_given_a_quantization_that_is_covered_then_the_engine_is_accepted(method: str | None) -> None:
    check_quantization(a_target(method, {}))
    check_quantization(a_target("fp8", BLOCKS))


@pytest.mark.parametrize("method", ["awq", "torchao"])
def test_given_one_that_is_not_then_it_is_refused_by_name(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"quantization '{method}' is not covered"):
        check_quantization(a_target(method, {}))


def test_given_compressed_tensors_then_only_its_fp8_is_covered() -> None:
    weights = {"num_bits": 4, "type": "int", "strategy": "group"}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    with pytest.raises(ConfigError, match="weights of 4 bits and type int"):
        check_quantization(a_target("compressed-tensors", {"quantization_config": quantization}))


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        (
            BLOCKS,
            {WEIGHT: ("BF16", (256, 200))},
            rf"tensor {WEIGHT} .* is not quantized.*ckpt_transport_fp8\.quantized",
        ),
        (BLOCKS, {WEIGHT: ("F8_E4M3", (256, 200))}, rf"{SCALE} is missing, and e needs it of shape \[2, 2\]"),
        (
            BLOCKS,
            {WEIGHT: ("F8_E4M3", (256, 200)), SCALE: ("F32", (2, 1))},
            rf"{SCALE} is of shape \[2, 1\], and e needs it of shape \[2, 2\]",
        ),
        ({}, {WEIGHT: ("F8_E4M3", (256, 200))}, rf"tensor {WEIGHT} .* is FP8, and e takes .* in which it is not"),
        (BLOCKS, {WEIGHT: ("F8_E4M3", (256, 200)), SCALE: ("F32", (2, 2))}, ""),
        (BLOCKS, {"lm_head.weight": ("BF16", (256, 200)), "norm.weight": ("BF16", (200,))}, ""),
        ({}, {WEIGHT: ("BF16", (256, 200))}, ""),
    ],
)
def test_given_no_files_to_compare_then_weights_of_the_wrong_kind_are_refused_by_name(
    config: dict[str, Any], tensors: dict[str, tuple[str, tuple[int, ...]]], said: str
) -> None:
    specs = [TensorSpec(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    if not said:
        check_tensors(a_target("fp8", config), specs, None, "e")
        return
    with pytest.raises(PlanMismatchError, match=said):
        check_tensors(a_target("fp8", config), specs, None, "e")


@pytest.mark.parametrize(
    ("brought", "held", "said"),
    [("BF16", "F8_E4M3", "is not quantized"), ("F8_E4M3", "BF16", "is FP8"), ("BF16", "BF16", ""), ("F32", "BF16", "")],
)
def test_given_files_to_compare_then_they_decide_which_kind_is_right(brought: str, held: str, said: str) -> None:
    """A module that its configuration would have quantized is not, in these files; that is as good."""
    bring, hold = (TensorSpec(WEIGHT, dtype, (256, 200)) for dtype in (brought, held))
    if not said:
        check_tensors(a_target("fp8", BLOCKS), [bring], [hold], "e")
        return
    with pytest.raises(PlanMismatchError, match=f"tensor {WEIGHT} .* {said}"):
        check_tensors(a_target("fp8", BLOCKS), [bring], [hold], "e")
