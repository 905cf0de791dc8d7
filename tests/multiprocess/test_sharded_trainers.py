"""Trainers that keep their weights in shards give these as they are: nothing is gathered, and engines get it all."""

from __future__ import annotations

import os
import warnings
from collections import abc
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from ckpt_transport import Config, Mapping, ParameterServer, rules
from tests.fleet import SinkSpec, by_name, context, fleet, model
from tests.patience import DEADLINE, PATIENT

Answer = tuple[str, dict[str, torch.Tensor], dict[str, int]]
"""What an update said, the whole weights, and bytes that this rank holds by name."""


def trained(mesh: Sequence[int]) -> torch.nn.Module:
    """A model after one step of training by FSDP2, and tensor parallel beneath where the mesh has two dimensions."""
    module = model(2, layers=4, width=30)
    names = ("data", "tensor")[: len(mesh)]
    devices = init_device_mesh("cpu", tuple(mesh), mesh_dim_names=names)
    if len(mesh) == 2:
        styles: dict[str, ParallelStyle] = {
            str(number): ColwiseParallel() if number % 2 == 0 else RowwiseParallel() for number in range(4)
        }
        parallelize_module(module, devices["tensor"], styles)
    for layer in module.children():
        fully_shard(layer, mesh=devices["data"])
    fully_shard(module, mesh=devices["data"])
    module.register_buffer("steps", torch.tensor([41.0]))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.ones(3, 30)).sum().backward()
    optimizer.step()
    return module


def run_rank(
    environ: abc.Mapping[str, str],
    mesh: Sequence[int],
    sinks: Sequence[str],
    how: str,
    mapping: Mapping | None,
    make: Callable[[Sequence[int]], torch.nn.Module],
    pipe: Connection,
) -> None:
    os.environ.update(environ)
    warnings.simplefilter("ignore")  # of FSDP2, about what its layers return
    dist.init_process_group("gloo")
    state = make(mesh).state_dict()
    said = ""
    held: dict[str, int] = {}
    with ParameterServer(Config.load(**PATIENT)) as server:
        wrapped = state if mapping is None else {f"module._orig_mod.{name}": value for name, value in state.items()}
        stored = getattr(server, how)("v2", tensors=wrapped, mapping=mapping)
        for part in stored.manifest.tensors:
            held[part.spec.name] = held.get(part.spec.name, 0) + part.nbytes
        try:
            server.update("v2", sinks if server.rank == 0 else None)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
    whole = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()}
    pipe.send((said, {name: value.detach().clone() for name, value in whole.items()}, held))
    pipe.recv()
    dist.destroy_process_group()


def train_and_update(
    mesh: Sequence[int],
    sinks: Sequence[str],
    how: str = "register",
    mapping: Mapping | None = None,
    make: Callable[[Sequence[int]], torch.nn.Module] = trained,
) -> list[Answer]:
    """What every rank of a trainer says."""
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    size = torch.Size(mesh).numel()
    ranks, pipes = [], []
    for rank in range(size):
        environ = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
        known = {name: str(value) for name, value in environ.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        ours, theirs = context.Pipe()
        arguments = (known, mesh, sinks, how, mapping, make, theirs)
        ranks.append(context.Process(target=run_rank, args=arguments, daemon=True))
        pipes.append(ours)
        ranks[-1].start()
    answers: list[Any] = []
    for pipe in pipes:
        assert pipe.poll(DEADLINE), "a rank does not end"
        answers.append(pipe.recv())
    for pipe, process in zip(pipes, ranks, strict=True):
        pipe.send("end")
        process.join(DEADLINE)
        assert process.exitcode == 0
    return answers


def with_steps(seed: int, **shape: Any) -> torch.nn.Module:
    """The model that is served: as the trainer's, with its buffer."""
    module = model(seed, layers=4, width=30, **shape)
    module.register_buffer("steps", torch.zeros(1))
    return module


@pytest.mark.parametrize(("transport", "how"), [("shm", "register"), ("gloo", "lend")])
@pytest.mark.parametrize("mesh", [(2,), (4,), (2, 2)], ids=str)
def test_given_a_model_that_fsdp2_shards_then_every_rank_gives_its_part_and_sinks_get_all(
    mesh: tuple[int, ...], transport: str, how: str
) -> None:
    """Layers of 30 rows are cut unevenly by four ranks, and biases of rows in a mesh of two by two are replicated."""
    settings = {"transport": transport} if transport == "gloo" else {}
    spec = SinkSpec(make=with_steps, settings=settings)
    with fleet(spec, spec) as sinks:
        answers = train_and_update(mesh, [sink.address for sink in sinks], how)
        assert [said for said, _, _ in answers] == [""] * len(answers)
        whole = answers[0][1]
        for sink in sinks:
            state = sink.state()
            assert (state.version, state.tainted) == ("v2", "")
            assert state.holds(whole)
    ranks = len(answers)
    for _, _, held in answers:
        assert sum(held.values()) < 1.6 / ranks * sum(tensor.nbytes for tensor in whole.values())


@pytest.mark.parametrize(("transport", "how"), [("shm", "register"), ("gloo", "lend")])
def test_given_shards_in_fp32_under_other_names_then_engines_get_them_in_bf16_under_theirs(
    transport: str, how: str
) -> None:
    mapping = Mapping.of(rules.Strip("module."), rules.Unwrap("_orig_mod"), rules.Cast("BF16"))
    spec = SinkSpec(make=in_bfloat16, settings={"transport": transport} if transport == "gloo" else {})
    with fleet(spec) as (sink,):
        answers = train_and_update((2,), [sink.address], how, mapping)
        assert [said for said, _, _ in answers] == ["", ""]
        assert sink.state().holds({name: tensor.to(torch.bfloat16) for name, tensor in answers[0][1].items()})
    nbytes = sum(tensor.nbytes for tensor in answers[0][1].values())
    for _, _, held in answers:
        assert sum(held.values()) < 0.6 * nbytes / 2, "a rank sends its shards, in half of their bytes"


def in_bfloat16(seed: int) -> torch.nn.Module:
    return with_steps(seed).to(torch.bfloat16)


class Adapted(torch.nn.Module):
    """A layer with an adapter, whose tensors are called as PEFT calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = torch.nn.Linear(30, 30)
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(30, 3, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(3, 30, bias=False)})

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.lora_B["default"](self.lora_A["default"](given))
        return self.base_layer(given) + 2 * added  # type: ignore[no-any-return]


def adapted(mesh: Sequence[int]) -> torch.nn.Module:
    """A model of two such layers, of which FSDP2 has trained the adapters."""
    torch.manual_seed(5)
    module = torch.nn.Sequential(Adapted(), Adapted())
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("lora_" in name)
    devices = init_device_mesh("cpu", tuple(mesh))
    for layer in module.children():
        fully_shard(layer, mesh=devices)
    fully_shard(module, mesh=devices)
    optimizer = torch.optim.SGD([each for each in module.parameters() if each.requires_grad], lr=0.1)
    torch.autograd.backward(module(torch.ones(3, 30)).sum())
    optimizer.step()
    return module


def merged(seed: int) -> torch.nn.Module:
    """What is served: the same layers without adapters."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(30, 30), torch.nn.Linear(30, 30))


@pytest.mark.parametrize(("ranks", "how"), [(2, "register"), (4, "lend")])
def test_given_an_adapter_that_fsdp2_shards_then_each_rank_adds_to_its_part_what_belongs_there(
    ranks: int, how: str
) -> None:
    mapping = Mapping.of(
        rules.Strip("module."), rules.Unwrap("_orig_mod"), rules.Lora(alpha=6), rules.Unwrap("base_layer")
    )
    with fleet(SinkSpec(make=merged)) as (sink,):
        answers = train_and_update((ranks,), [sink.address], how, mapping, adapted)
        assert [said for said, _, _ in answers] == [""] * ranks
        served = sink.state().tensors
    whole = answers[0][1]
    for layer in "01":
        base, a, b = (whole[f"{layer}.{name}.weight"] for name in ("base_layer", "lora_A.default", "lora_B.default"))
        torch.testing.assert_close(served[f"{layer}.weight"], base + 2 * b @ a)
        assert not torch.equal(served[f"{layer}.weight"], base)
        assert torch.equal(served[f"{layer}.bias"], whole[f"{layer}.base_layer.bias"])
    for _, _, held in answers:
        assert held["0.weight"] <= -(-30 // ranks) * 30 * 4, "a rank sends its part of the sum"


def test_given_a_sink_whose_loader_takes_tensors_whole_then_the_update_is_refused_with_the_cure() -> None:
    with fleet(SinkSpec(make=with_steps, loader=by_name)) as (sink,):
        answers = train_and_update((2,), [sink.address])
        assert "a sink's loader takes tensors whole" in answers[0][0]
        assert "give full_tensor() of it" in answers[0][0]
        assert (sink.state().version, sink.state().served) == ("v1", "")
