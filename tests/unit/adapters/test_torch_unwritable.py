"""Given a module with a tensor that cannot be written, then it is refused by name before the first byte."""

from __future__ import annotations

import ctypes
import mmap
import warnings
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import UnwritableError, UpdateAbortedError
from ckpt_transport_torch import attach
from ckpt_transport_torch.engine import TorchEngine
from ckpt_transport_torch.loader_engine import LoaderEngine
from tests.patience import PATIENT
from tests.unit.torch_modules import Change, Pairs, bring, holds, looks_up, net, version


def expand(module: Any) -> None:
    module.register_buffer("mask", torch.eye(4).expand(3, 4, 4))


def meta(module: Any) -> None:
    module.to("meta")


def free(module: Any) -> None:
    module[0].weight.untyped_storage().resize_(0)


def sparse(module: Any) -> None:
    module.register_buffer("mask", torch.eye(4).to_sparse())


def lazy(module: Any) -> None:
    module.append(torch.nn.LazyLinear(4))


def quantized(module: Any) -> None:
    with warnings.catch_warnings(action="ignore"):
        module.register_buffer("scale", torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8))


def nested(module: Any) -> None:
    with warnings.catch_warnings(action="ignore"):
        weight = torch.nested.nested_tensor([torch.ones(4), torch.ones(3)])
    module[0].weight = torch.nn.Parameter(weight, requires_grad=False)


def made_anew(module: Any) -> None:
    def clones(_: Any, state: dict[str, Any], prefix: str, *__: Any) -> None:
        state["0.weight"] = state["0.weight"].clone()

    module.register_state_dict_post_hook(clones)


UNWRITABLE: dict[Change, str] = {
    expand: r"^mask cannot be updated: some of its elements share memory .*clone\(\)",
    meta: r"0\.weight cannot be updated: it is on the meta device",
    free: r"^0\.weight cannot be updated: its memory was freed",
    sparse: r"^mask cannot be updated: its layout",
    lazy: r"^3\.weight cannot be updated: it has no shape",
    quantized: r"^scale cannot be updated: safetensors has no name for torch\.qint8",
    nested: r"^0\.weight cannot be updated: it is nested",
    made_anew: r"^0\.weight cannot be updated: state_dict\(\) makes it anew",
}


@pytest.mark.parametrize("change", UNWRITABLE)
def test_given_a_module_with_a_tensor_that_cannot_be_written_then_it_is_not_attached(change: Change) -> None:
    module = net()
    change(module)
    with pytest.raises(UnwritableError, match=UNWRITABLE[change]):
        attach(module)


@pytest.mark.parametrize("change", UNWRITABLE)
def test_given_a_tensor_that_cannot_be_written_any_more_then_it_is_found_before_the_first_byte(change: Change) -> None:
    """Given a module that became unwritable, then the update changes nothing, and the sink is not tainted for ever."""
    module = net()
    tensors = version(module, 0.5)
    with attach(module, version="old") as served, ParameterServer(Config.load(**PATIENT)) as server:
        change(module)
        server.register("new", tensors=tensors)
        for _ in range(2):
            with pytest.raises(UpdateAbortedError, match=UNWRITABLE[change].lstrip("^")):
                server.update("new", [served.address])
        assert (served.version, served.tainted) == ("old", "")


def test_given_a_tensor_that_becomes_read_only_then_it_is_refused_until_it_is_writable_again() -> None:
    """Given memory that is protected after attach, then no write ends the process."""
    memory = mmap.mmap(-1, 16 * 16 * 4)
    module = net()
    module[0].weight.data = torch.frombuffer(memory, dtype=torch.float32).view(16, 16)
    address = ctypes.c_void_p(module[0].weight.data_ptr())
    engines = TorchEngine(module), LoaderEngine(module, looks_up(module))
    for engine in engines:
        bring(engine, version(module, 0.5))
    mprotect = ctypes.CDLL(None).mprotect
    mprotect(address, ctypes.c_size_t(len(memory)), mmap.PROT_READ)
    try:
        for engine in engines:
            with pytest.raises(UnwritableError, match=r"^0\.weight cannot be updated: its memory is mapped read-only"):
                engine.begin()
    finally:
        mprotect(address, ctypes.c_size_t(len(memory)), mmap.PROT_READ | mmap.PROT_WRITE)
    for engine in engines:
        bring(engine, version(module, 0.7))
        assert holds(module, version(module, 0.7))


@pytest.mark.parametrize("change", [expand, meta, free])
def test_given_a_loader_that_writes_what_cannot_be_written_then_it_is_refused_before_the_first_byte(
    change: Change,
) -> None:
    module = net()
    tensors = version(module, 0.5)
    with (
        attach(module, version="old", loader=looks_up(module)) as served,
        ParameterServer(Config.load(**PATIENT)) as server,
    ):
        change(module)
        server.register("new", tensors={**tensors, **({"mask": torch.zeros(3, 4, 4)} if change is expand else {})})
        for _ in range(2):
            with pytest.raises(UpdateAbortedError, match=UNWRITABLE[change].lstrip("^")):
                server.update("new", [served.address])
        assert (served.version, served.tainted) == ("old", "")


def test_given_a_loader_then_it_may_leave_out_what_cannot_be_written() -> None:
    module = net()
    tensors = version(module, 0.5)
    expand(module)
    engine = LoaderEngine(module, looks_up(module))
    for value in (0.5, 0.7):
        tensors = {name: torch.full_like(tensor, value) for name, tensor in tensors.items()}
        bring(engine, tensors)
        assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in tensors.items())


class Guarded(torch.nn.Parameter):
    """A parameter with operations of its own, which allow no copies."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.copy_, torch.Tensor.detach):
            raise RuntimeError("this parameter has a loader")
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def test_given_a_parameter_whose_class_refuses_copies_then_it_is_written_all_the_same() -> None:
    module = net()
    module[0].weight = Guarded(torch.zeros(16, 16).t())
    engine = TorchEngine(module)
    bring(engine, {name: torch.full(tuple(spec), 0.5) for name, spec in shapes(engine).items()})
    assert bool((module[0].weight == 0.5).all())


def test_given_a_loader_that_copies_into_such_a_parameter_then_it_is_refused_before_the_first_byte() -> None:
    module = net()
    tensors = version(module, 0.5)
    module[0].weight = Guarded(torch.zeros(16, 16))

    def load(pairs: Pairs) -> None:
        for name, tensor in pairs:
            module.get_parameter(name).copy_(tensor)

    with (
        attach(module, version="old", loader=load) as served,
        ParameterServer(Config.load(**PATIENT)) as server,
    ):
        server.register("new", tensors=tensors)
        for _ in range(2):
            with pytest.raises(UpdateAbortedError, match=r"0\.weight cannot be updated.*this parameter has a loader"):
                server.update("new", [served.address])
        assert (served.version, served.tainted) == ("old", "")


def test_given_a_loader_that_does_not_know_the_module_any_more_then_it_is_refused_before_the_first_byte() -> None:
    """Given a loader that was recorded, when a layer is swapped for one it cannot load, then nothing is tainted."""
    module = net()
    tensors = version(module, 0.5)
    with (
        attach(module, version="old", loader=looks_up(module)) as served,
        ParameterServer(Config.load(**PATIENT)) as server,
    ):
        server.register("new", tensors=tensors)
        server.update("new", [served.address])
        module[2] = torch.nn.Identity()
        server.register("newer", tensors=tensors)
        for _ in range(2):
            with pytest.raises(
                UpdateAbortedError, match=r"the loader does not work with the module as it is now.*KeyError"
            ):
                server.update("newer", [served.address])
        assert (served.version, served.tainted) == ("new", "")


def shapes(engine: TorchEngine) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in engine.expects() or ()}
