"""What cannot be given as the tensors of a version is refused by name, with what to give instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch._subclasses import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor

from ckpt_transport import Config, Holder
from ckpt_transport.checkpoint import Store
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import MemoryKind
from ckpt_transport_fp8 import Target, quantized
from ckpt_transport_fp8.config import parse
from tests.unit.safetensors_files import raw

Take = Callable[[object], object]


def register(tensors: object) -> object:
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        return store.register("v1", tensors=tensors)  # type: ignore[arg-type]


def lend(tensors: object) -> object:
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        return store.lend("v1", tensors)  # type: ignore[arg-type]


def hold(tensors: object) -> object:
    with Holder("v1", tensors=tensors, config=Config(pool="private")) as holder:  # type: ignore[arg-type]
        return holder.version


def make_fp8(tensors: object) -> object:
    block = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    return quantized(tensors, Target("config.json", parse(block, "config.json")))  # type: ignore[arg-type]


every_way = pytest.mark.parametrize("take", [register, lend, hold, make_fp8])


@pytest.fixture
def dtensor() -> Iterator[DTensor]:
    """A tensor that is spread over a mesh of one rank."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield distribute_tensor(torch.ones(4, 4), init_device_mesh("cpu", (1,)), [Replicate()])
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("take", [register, lend, hold])
def test_given_a_dtensor_then_it_is_taken_in(take: Take, dtensor: DTensor) -> None:
    for value in (dtensor, torch.nn.Parameter(dtensor)):
        take({"first": torch.ones(2), "a.weight": value})


def test_given_a_dtensor_of_which_ranks_have_summands_then_it_is_refused_with_the_call_that_sums_them(
    dtensor: DTensor,
) -> None:
    summands = DTensor.from_local(torch.ones(4), dtensor.device_mesh, [Partial()])
    with pytest.raises(CheckpointError, match=r"'a' is a DTensor whose ranks have summands.*redistribute\("):
        register({"a": summands})


def test_given_a_dtensor_to_be_made_fp8_then_it_is_refused_by_name_with_the_call_that_gathers_it(
    dtensor: DTensor,
) -> None:
    for value in (dtensor, torch.nn.Parameter(dtensor)):
        with pytest.raises(CheckpointError, match=r"'a\.weight' is a DTensor.*call full_tensor\(\) on all ranks"):
            make_fp8({"first": torch.ones(2), "a.weight": value})


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(3)


def freed() -> torch.Tensor:
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    return tensor


@every_way
@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: {"a": None}, "'a' is None and not a tensor; leave it out", id="none"),
        pytest.param(lambda: {"a": np.ones(3)}, r"'a' is of type numpy\.ndarray .* torch\.from_numpy", id="numpy"),
        pytest.param(lambda: {"a": {"b": torch.ones(3)}}, "'a' is a dict .* flatten it", id="nested"),
        pytest.param(lambda: {"a": 1.5}, "'a' is of type float and not a tensor", id="number"),
        pytest.param(lambda: {3: torch.ones(3)}, "tensor 3 has a name of type int; give a string", id="integer name"),
        pytest.param(lambda: {"\ud800": torch.ones(3)}, "a name that is not Unicode text", id="surrogate"),
        pytest.param(lambda: torch.nn.Linear(2, 2), r"not a module; give state_dict\(\) of Linear", id="module"),
        pytest.param(lambda: 7, "mapping from names to tensors, not a int", id="no mapping"),
        pytest.param(lambda: {"a": torch.eye(2).to_sparse()}, r"'a' is torch\.sparse_coo; make it dense", id="sparse"),
        pytest.param(lambda: {"a": torch.ones(2, device="meta")}, "'a' is on the meta device", id="meta"),
        pytest.param(lambda: {"a": fake()}, "'a' is a FakeTensor", id="fake"),
        pytest.param(
            lambda: {"a": torch._to_functional_tensor(torch.ones(3))}, "'a' belongs to a function", id="functional"
        ),
        pytest.param(
            lambda: {"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
            "'a' is nested",
            id="nested tensor",
        ),
        pytest.param(
            lambda: {"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)},
            r"'a' is quantized to torch\.quint8; give dequantize\(\)",
            id="quantized",
        ),
        pytest.param(
            lambda: {"a": torch.nn.parameter.UninitializedParameter()}, "'a' is not initialized", id="uninitialized"
        ),
        pytest.param(lambda: {"a": freed()}, "'a' has no memory any more", id="freed"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_given_what_is_no_plain_tensor_then_it_is_refused_by_name(
    take: Take, make: Callable[[], object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        take(make())


@pytest.mark.parametrize("take", [lend, make_fp8])
def test_given_pairs_to_stay_where_they_are_then_a_mapping_that_keeps_them_is_asked_for(take: Take) -> None:
    with pytest.raises(CheckpointError, match=r"not a list; give dict\("):
        take([("a", torch.ones(3))])
    with pytest.raises(CheckpointError, match=r"not a generator; give dict\(.*only register and publish"):
        take(torch.nn.Linear(2, 2).named_parameters())


@pytest.mark.parametrize("view", [torch.Tensor.conj, lambda tensor: tensor[:1].conj().imag])
def test_given_a_conjugate_or_negative_view_then_it_is_copied_and_not_lent(
    view: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    tensor = torch.tensor([1 + 2j, 3 + 4j, 5 + 6j])
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        (copy,) = store.register("v1", tensors={"a": view(tensor)}).tensors().values()
        assert torch.equal(copy, view(tensor).resolve_conj().resolve_neg())
        with pytest.raises(CheckpointError, match="'a' is a conjugate or negative view"):
            store.lend("v2", {"a": view(tensor)})


def test_given_extra_state_then_it_is_left_out_unless_it_is_a_tensor() -> None:
    values = {
        "a": torch.ones(3),
        "_extra_state": None,
        "layer._extra_state": {"step": 3},
        "b._extra_state": torch.ones(2),
    }
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        for stored in (store.register("v1", tensors=values), store.lend("v2", values)):  # type: ignore[arg-type]
            assert [tensor.spec.name for tensor in stored.manifest.tensors] == ["a", "b._extra_state"]
        assert raw(store.get("v1"), "a").view(torch.float32).tolist() == [1, 1, 1]
