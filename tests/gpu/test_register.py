"""Weights of a training step are taken in from GPUs, as fast as the link brings them."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.checkpoint import Store

CYCLES = 200_000_000
"""About a tenth of a second."""


def random(nbytes: int, device: str = "cuda:0") -> torch.Tensor:
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=device)


def check(store: Store, version: str, weights: dict[str, torch.Tensor]) -> None:
    for name, copy in store.get(version).tensors().items():
        assert torch.equal(copy.view(torch.uint8), weights[name].cpu().contiguous().view(torch.uint8)), name


def test_given_tensors_of_every_kind_then_the_pool_has_their_bytes() -> None:
    """Given tensors on the GPU and on the CPU, odd, strided, empty and large, then all arrive, twice."""
    for_two_steps = [
        {
            "large": random((70 << 20) + 3),
            "empty": random(0),
            "scalar": random(1).view(()),
            "transposed": random(6 << 20).view(torch.bfloat16).view(3, -1).t(),
            "on the host": random(20 << 20).cpu(),
            **{f"small.{number}": random(2 * number + 1) for number in range(500)},
        }
        for _ in range(2)
    ]
    with Store(pinned=True) as store:
        for weights in for_two_steps:
            stored = store.register("step", tensors=weights)
            assert stored.buffers[0].tensor.is_pinned()
            check(store, "step", weights)
            store.unregister("step")


def test_given_a_step_that_is_still_computed_then_it_is_taken_in_when_it_is_there() -> None:
    """Given a slow kernel on the caller's stream that then writes the weights, then these are what is registered."""
    weights = {f"{number}": torch.zeros(1 << 20, device="cuda:0") for number in range(8)}
    with Store(pinned=True) as store, torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        store.register("before", tensors=weights)
        torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
        for number, tensor in enumerate(weights.values()):
            tensor.fill_(number + 1)
        store.register("step", tensors=weights)
        assert [int(tensor[-1]) for tensor in store.get("step").tensors().values()] == list(range(1, 9))
        assert not any(tensor.any() for tensor in store.get("before").tensors().values())


def test_given_a_complex_conjugate_then_its_values_are_taken_in() -> None:
    value = torch.randn(5, dtype=torch.complex64, device="cuda:0")
    with Store(pinned=True) as store:
        found = store.register("step", tensors={"conjugate": value.conj(), "value": value}).tensors()
        assert torch.equal(found["conjugate"], value.cpu().conj().resolve_conj())
        assert torch.equal(found["value"], value.cpu())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_given_tensors_on_two_gpus_then_all_arrive() -> None:
    weights = {f"{number}": random((8 << 20) + number, f"cuda:{number % 2}") for number in range(40)}
    with Store(pinned=True) as store:
        store.register("step", tensors=weights)
        check(store, "step", weights)
