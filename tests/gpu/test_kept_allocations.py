"""Given memory of a GPU that was lent, whether it is still there at the next step."""

from __future__ import annotations

import torch

from ckpt_transport.checkpoint.lent_memory import LentMemory
from ckpt_transport_cuda_ipc.memory import Allocation

GPU = torch.device("cuda", 0)
NBYTES = 32 << 20


def lent(tensor: torch.Tensor) -> LentMemory:
    return LentMemory.of([tensor], [0], tensor.nbytes)


def test_given_memory_that_torch_gives_back_then_it_is_not_there_though_other_memory_comes_to_its_address() -> None:
    torch.cuda.empty_cache()
    tensor = torch.ones(NBYTES, dtype=torch.uint8, device=GPU)
    memory = lent(tensor)
    assert memory.is_there
    other = torch.ones(2 * NBYTES, dtype=torch.uint8, device=GPU)
    assert memory.is_there
    del tensor
    torch.cuda.empty_cache()
    again = torch.ones(NBYTES, dtype=torch.uint8, device=GPU)
    assert not memory.is_there
    assert lent(again).is_there
    assert lent(other).is_there


def test_given_memory_that_torch_does_not_have_then_it_is_asked_for_though_torch_has_freed_nothing() -> None:
    allocation = Allocation(NBYTES, GPU)
    memory = lent(allocation.tensor)
    assert memory.is_there
    assert memory.is_there
    allocation.free()
    assert not memory.is_there
