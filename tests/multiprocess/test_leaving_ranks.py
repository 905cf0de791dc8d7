"""A source rank above 0 that has come for an update leaves it: rank 0 hears why, and whoever comes again takes part."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.control import Mailbox
from ckpt_transport.errors import JoinError
from ckpt_transport.service import questions as q
from ckpt_transport.update import messages as m
from tests.multiprocess.test_disagreeing_ranks import part_of, publish, source_ranks
from tests.patience import DEADLINE, PATIENT

DELTAS: dict[str, Any] = {"delta": "on", "delta_base": "beside", "commit": "auto"}
EVERYTHING: dict[str, Any] = {"delta": "off"}
begun: list[Future[Any]] = []
"""What this rank has begun and not ended."""


def has_come(server: ParameterServer) -> bool:
    """Whether what this rank says of itself is on its way to rank 0."""
    following = server._here._following
    return following is not None and following._surely


def changed_part(server: ParameterServer, seed: int, by: float = 1.0) -> dict[str, torch.Tensor]:
    """Weights of which one element of each tensor differs from those of that seed."""
    part = part_of(server, seed)
    for tensor in part.values():
        tensor.view(-1)[0] += by
    return part


def begin(version: str, server: ParameterServer, sink: str, part: dict[str, torch.Tensor] | None = None) -> None:
    """Publish on a thread, as far as this rank has come."""
    given = part_of(server, 2) if part is None else part
    server._here._following = None
    begun.append(ThreadPoolExecutor(1).submit(partial(server.publish, version, given, [sink])))
    until = time.monotonic() + DEADLINE
    while not has_come(server):
        assert time.monotonic() < until
        time.sleep(0.01)


def end(server: ParameterServer, sink: str) -> None:
    begun.pop().result(DEADLINE)


def publish_changed(version: str, seed: int, server: ParameterServer, sink: str) -> None:
    server.publish(version, changed_part(server, seed), [sink])


def begin_and_write(version: str, seed: int, server: ParameterServer, sink: str) -> None:
    """Publish changed tensors, and write to them while rank 0 is waited for."""
    part = changed_part(server, seed)
    begin(version, server, sink, part)
    for tensor in part.values():
        tensor.add_(1)


def cancel_when_it_has_come(version: str, server: ParameterServer, sink: str) -> None:
    server._here._following = None

    async def cancelled() -> None:
        task = asyncio.create_task(server.awaiting(publish, version, server, sink))
        while not has_come(server):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())


def test_given_a_rank_that_fails_while_versions_are_compared_then_rank_0_says_why_and_the_next_call_works() -> None:
    with source_ranks("address", settings=[DELTAS, DELTAS]) as ranks:
        act = partial(publish, "v2", seed=2)
        assert ranks.do(act, act) == ["", ""]
        assert ranks.do_one(1, partial(begin_and_write, "v3", 2)) == ""
        heard = ranks.do_one(0, partial(publish_changed, "v3", 2))
        reason = "was changed or freed by its owner since the version was lent"
        assert "source rank 1 takes no part in the update" in heard
        assert reason in heard
        assert reason in ranks.do_one(1, end)
        ranks.check_agree("v3")


@pytest.mark.parametrize("settings", [EVERYTHING, DELTAS], ids=["everything", "deltas"])
def test_given_a_rank_that_is_cancelled_and_calls_again_before_rank_0_comes_then_both_make_the_second_call(
    settings: dict[str, Any],
) -> None:
    """Given a rank 0 that has not been heard of before, and one that has."""
    with source_ranks("address", settings=[settings, settings]) as ranks:
        for version in ("v2", "v3"):
            assert ranks.do_one(1, partial(cancel_when_it_has_come, version)) == ""
            assert ranks.do_one(1, partial(begin, version)) == ""
            assert ranks.do_one(0, partial(publish, version)) == ranks.do_one(1, end) == ""
            ranks.check_serves(version, 2)
        ranks.check_agree()


def test_given_three_ranks_with_deltas_of_which_one_is_cancelled_and_calls_again_then_all_make_the_second_call() -> (
    None
):
    with source_ranks("address", size=3, settings=[DELTAS] * 3) as ranks:
        ranks.check_agree("v2")
        assert ranks.do_one(1, partial(cancel_when_it_has_come, "v3")) == ""
        for rank in (1, 2):
            assert ranks.do_one(rank, partial(begin, "v3")) == ""
        assert ranks.do_one(0, partial(publish, "v3")) == ""
        assert [ranks.do_one(rank, end) for rank in (1, 2)] == ["", ""]
        ranks.check_serves("v3", 2)


def test_given_a_refusal_of_a_call_that_was_cancelled_then_the_next_call_waits_for_its_own_answer() -> None:
    with Mailbox(types=q.COORDINATOR, interval=0.1) as rank_0:
        settings = Config.load(**{**PATIENT, "coordinator": rank_0.address})
        with ParameterServer(settings, rank=1, world_size=2) as server:

            def next_join() -> m.Join:
                while not isinstance(message := (rank_0.receive(DEADLINE) or pytest.fail("nobody comes"))[1], m.Join):
                    continue
                return message

            cancel_when_it_has_come("v2", server, "")
            first = next_join()
            begin("v2", server, "")
            rank_0.refuse("the first call", first.nonce)
            while (second := next_join()).nonce == first.nonce:
                continue
            rank_0.refuse("the second call", second.nonce)
            with pytest.raises(JoinError, match="the second call"):
                end(server, "")
