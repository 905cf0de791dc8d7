"""Kernels are compiled before they are needed."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.deltas import DeviceExchange, Elements, device_exchange, exchange_each, why_no_exchange
from ckpt_transport.memory import compile_kernels, copy_table, has_copy_tables
from ckpt_transport_torch import attach
from ckpt_transport_torch.engine import TorchEngine
from tests.patience import PATIENT

GPU = torch.device("cuda", 0)


def test_given_a_gpu_that_has_warmed_up_then_its_kernels_are_compiled() -> None:
    copy_table._launch_of.cache_clear()
    compile_kernels.cache_clear()
    compile_kernels(GPU)
    if has_copy_tables(GPU):
        assert copy_table._launch_of(False, GPU).compiled is not None


def test_given_tensors_that_are_lent_on_a_gpu_then_kernels_that_read_them_are_compiled() -> None:
    copy_table._launch_of.cache_clear()
    compile_kernels.cache_clear()
    with ParameterServer(Config.load(**PATIENT)) as server:
        server.lend("v1", {"weight": torch.zeros(4, device=GPU)})
    assert compile_kernels.cache_info().currsize == 1
    if has_copy_tables(GPU):
        assert copy_table._launch_of(False, GPU).compiled is not None


@pytest.mark.parametrize("commit", ["auto", "in_place"])
def test_given_a_trainer_that_has_warmed_up_then_nothing_has_changed_and_steps_are_as_they_are_published(
    commit: str,
) -> None:
    """Its tensors are lent under a name that is let go of, and change afterwards."""
    module, trained = torch.nn.Linear(64, 64, device=GPU), torch.nn.Linear(64, 64, device=GPU)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with attach(module) as attachment, ParameterServer(Config.load(**PATIENT, commit=commit)) as server:
        server.lend("as it is", trained.state_dict())
        warmed = server.warm_up("as it is", [attachment.address])
        server.unregister("as it is")
        assert warmed is not None
        assert (warmed.staged, warmed.paused) == (commit == "auto", {})
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
        for step in range(1, 4):
            with torch.no_grad():
                for parameter in trained.parameters():
                    parameter.add_(step)
            server.publish(f"step-{step}", trained.state_dict(), [attachment.address])
            assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in module.state_dict().items())


def test_given_an_engine_that_was_not_warmed_up_then_kernels_are_compiled_before_requests_stand_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy_table._launch_of.cache_clear()
    compile_kernels.cache_clear()
    module = torch.nn.Linear(64, 64, device=GPU)
    new = {name: torch.randn_like(tensor) for name, tensor in module.state_dict().items()}
    compiled: list[bool] = []
    hold = TorchEngine.hold

    def look_and_hold(engine: TorchEngine) -> int:
        compiled.append(copy_table._launch_of(False, GPU).compiled is not None)
        return hold(engine)

    monkeypatch.setattr(TorchEngine, "hold", look_and_hold)
    with attach(module) as attachment, ParameterServer(Config.load(**PATIENT)) as server:
        server.publish("step-1", new, [attachment.address])
    assert compiled == [has_copy_tables(GPU)]
    assert all(torch.equal(tensor, new[name]) for name, tensor in module.state_dict().items())


def test_given_elements_that_are_to_be_exchanged_then_the_kernel_is_compiled_before_that() -> None:
    if why_no_exchange(GPU):
        return
    device_exchange._kernel_on.cache_clear()
    served, brought = torch.zeros(2, dtype=torch.int16, device=GPU), torch.ones(1, dtype=torch.int16, device=GPU)
    exchange = DeviceExchange(Elements(torch.tensor([served.data_ptr()], device=GPU), brought))
    assert device_exchange._kernel_on(GPU, torch.int16).compiled is not None
    assert served.tolist() == [0, 0]
    exchange_each([exchange], GPU)
    assert served.tolist() == [1, 0]
