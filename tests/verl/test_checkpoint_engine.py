"""Our checkpoint engine as verl calls it: a source and two rollouts in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_transport import TaintedError, UpdateError
from tests.fleet import weights
from tests.leftovers import left_behind
from tests.patience import SWIFT

BUCKET_NBYTES = 1 << 20


class Group:
    """One source and two rollouts, each of which has an engine from verl's registry.

    Args:
        settings: what verl calls ``engine_kwargs``.
    """

    def __init__(self, ending: ExitStack, **settings: Any) -> None:
        from verl.checkpoint_engine import CheckpointEngineRegistry

        import ckpt_transport_verl.checkpoint_engine  # noqa: F401

        def engine(**role: Any) -> Any:
            made = CheckpointEngineRegistry.new(
                "ckpt_transport", bucket_size=BUCKET_NBYTES, **role, **{**SWIFT, **settings}
            )
            return ending.enter_context(closing(made))

        self.source, self.rollouts = engine(is_master=True), [engine(), engine()]

    async def update(self, number: int, fails: int = -1) -> list[Any]:
        """As verl's manager does it; what each rollout got, or how it failed, and at the end what the source says.

        Args:
            fails: the rollout whose inference engine fails at the second tensor.
        """
        engines = [self.source, *self.rollouts]
        topology = self.source.build_topology(1, 2, [each.prepare() for each in engines])
        for each, sinks in zip(engines, [sinks for part in topology for sinks in part["sinks"]], strict=True):
            each.init_process_group(sinks=sinks)
        got = [load(each.receive_weights(number), at == fails) for at, each in enumerate(self.rollouts)]
        sent = self.source.send_weights(gathered(number), number)
        results = await asyncio.gather(*got, sent, return_exceptions=True)
        for each in engines:
            each.finalize()
        return results


def gathered(number: int) -> Iterator[tuple[str, torch.Tensor]]:
    """As an actor gathers its parameters, which are what is trained."""
    for name, tensor in weights(number).items():
        assert not torch.is_grad_enabled()
        yield name, tensor.requires_grad_(tensor.is_floating_point())


async def load(received: AsyncIterator[tuple[str, torch.Tensor]], fails: bool) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = {}
    async for name, tensor in received:
        if fails and loaded:
            await received.aclose()  # type: ignore[attr-defined]
            raise ValueError("its inference engine refuses a tensor")
        loaded[name] = tensor.clone()
    return loaded


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    with ExitStack() as ending:
        yield ending
    assert not left_behind()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def test_given_no_setting_then_rollouts_get_floats_as_bfloat16_and_nothing_lies_in_shared_memory_after(
    ending: ExitStack,
) -> None:
    group = Group(ending)
    for number in (1, 2):
        one, other, metrics = asyncio.run(group.update(number))
        cast = {
            name: tensor.bfloat16() if tensor.is_floating_point() else tensor
            for name, tensor in weights(number).items()
        }
        assert same(one, cast)
        assert same(other, cast)
        assert list(metrics) == ["weight_sync/seconds"]
        assert not left_behind()


def test_given_an_empty_rollout_dtype_then_tensors_come_as_the_trainer_has_them(ending: ExitStack) -> None:
    one, other, _ = asyncio.run(Group(ending, rollout_dtype="").update(1))
    assert same(one, weights(1))
    assert same(other, weights(1))


def test_given_a_rollout_that_cannot_load_then_everybody_hears_it_and_the_next_update_succeeds(
    ending: ExitStack,
) -> None:
    group = Group(ending, rollout_dtype="")
    one, other, sent = asyncio.run(group.update(1, fails=1))
    assert isinstance(one, UpdateError)
    assert isinstance(other, ValueError)
    assert isinstance(sent, TaintedError)
    assert "who received from" in str(sent)
    assert not left_behind()

    one, other, _ = asyncio.run(group.update(2))
    assert same(one, weights(2))
    assert same(other, weights(2))


def test_given_a_secret_then_sinks_listen_where_other_hosts_reach_them(ending: ExitStack, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text("a secret of the test")
    group = Group(ending, rollout_dtype="", secret_file=str(secret))
    one, other, _ = asyncio.run(group.update(1))
    assert same(one, weights(1))
    assert same(other, weights(1))
    assert all(each.prepare().startswith("tcp://") for each in group.rollouts)
