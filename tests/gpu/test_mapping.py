"""What a mapping makes of a GPU's tensors is cast there, bit by bit as on the CPU."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport import Mapping, rules
from ckpt_transport.checkpoint import Store

GPU = torch.device("cuda", 0)
MAPPING = Mapping.of(
    rules.Strip("module."),
    rules.Unstack(r"experts\.gate_up_proj", r"experts.{index}.gate_up_proj"),
    rules.Split(r"(.*)\.gate_up_proj", (r"\1.gate", r"\1.up")),
    rules.Cast("BF16"),
)


def tensors(device: torch.device) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    made = {
        "module.experts.gate_up_proj": torch.randn(5, 2 * 33, 7),
        "module.norm": torch.randn(1001),
        "module.steps": torch.arange(9),
        "module.large": torch.randn(1 << 21),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


@pytest.mark.parametrize("slot_device", ["cpu", "cuda"])
def test_given_lent_fp32_on_a_gpu_then_slots_are_filled_with_the_bf16_of_the_cpu(slot_device: str) -> None:
    with Store() as store:
        expected = store.register("expected", tensors=tensors(torch.device("cpu")), mapping=MAPPING)
        lent = store.lend("lent", tensors(GPU), mapping=MAPPING)
        assert lent.manifest.tensors == expected.manifest.tensors
        (pool,), (extent,) = expected.buffers, lent.extents
        for start in range(0, pool.nbytes, 1 << 20):
            slot = torch.zeros(min(1 << 20, pool.nbytes - start), dtype=torch.uint8, device=slot_device)
            extent.fill(slot, start)
            torch.cuda.synchronize()
            found = slot.cpu()
            for place in expected.manifest.tensors:
                low, high = max(place.offset - start, 0), min(place.offset + place.nbytes - start, len(found))
                if low < high:
                    assert torch.equal(found[low:high], pool.tensor[start + low : start + high])


def test_given_fp32_on_a_gpu_then_it_is_registered_as_the_bf16_of_the_cpu() -> None:
    with Store(pinned=True) as store:
        expected = store.register("expected", tensors=tensors(torch.device("cpu")), mapping=MAPPING).tensors()
        found = store.register("found", tensors=tensors(GPU), mapping=MAPPING).tensors()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        came = store.register("came", tensors=iter(tensors(GPU).items()), mapping=MAPPING).tensors()
        assert all(torch.equal(came[name], tensor) for name, tensor in expected.items())
