"""Who may say what: to a sink its coordinator, with the sink's nonce and in order; to a source whoever was invited."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import pytest
import zmq

from ckpt_transport import Config, ParameterServer, Sink, ask_version
from ckpt_transport.control import Mailbox, Message
from ckpt_transport.control.messages import Codec, Refused
from ckpt_transport.errors import ConfigError, JoinError, TaintedError
from ckpt_transport.planning import Manifest, Role
from ckpt_transport.service import questions as q
from ckpt_transport.update import messages as m
from ckpt_transport.update.invitations import Invitations, Invitees
from ckpt_transport.update.membership import Membership
from ckpt_transport.update.turn import Turn
from ckpt_transport_torch.engine import TorchEngine
from tests.fleet import SinkSpec, by_name, fleet, model, weights
from tests.injection import Fault
from tests.patience import DEADLINE, PATIENT

PATIENCE = 120.0
Kind = TypeVar("Kind", bound=Message)


def running_sink(**settings: Any) -> Sink:
    return Sink(
        TorchEngine(model(1, layers=2, width=8)), version="v1", config=Config.load(**{**PATIENT, **settings})
    ).start()


@pytest.fixture
def sink() -> Iterator[Sink]:
    with closing(running_sink()) as running:
        yield running


@contextmanager
def closing(sink: Sink) -> Iterator[Sink]:
    try:
        yield sink
        assert ask_version(sink.address, timeout=DEADLINE).version == sink.version == "v1"
        assert not sink.tainted
    finally:
        sink.close()


@pytest.fixture
def leader() -> Iterator[Mailbox]:
    """Where a coordinator listens."""
    with Mailbox(types=q.COORDINATOR, interval=0.1) as mailbox:
        yield mailbox


def hear(mailbox: Mailbox, kind: type[Kind]) -> Kind:
    """The next message, which is of that kind."""
    received = mailbox.receive(PATIENCE)
    assert received is not None, f"no {kind.__name__}"
    assert isinstance(received[1], kind), received
    return received[1]


def invite(sink: Sink, update: str = "u", nonce: str = "") -> m.Invite:
    return m.Invite(update, "v2", sink.address, (), nonce=nonce)


def join(leader: Mailbox, sink: Sink, update: str = "u") -> str:
    """Be invited; the sink's nonce."""
    leader.send(sink.address, invite(sink, update))
    nonce = hear(leader, m.Challenge).nonce
    leader.watch(sink.address)
    leader.send(sink.address, invite(sink, update, nonce))
    assert hear(leader, m.Join).nonce == nonce
    return nonce


def forge(sink: Sink, sender: str, *messages: Message) -> list[Message]:
    """Send in somebody else's name, on a connection of one's own; the answers that come there."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(sink.address)
        for message in (*messages, q.AskVersion()):
            dealer.send_multipart(Codec().frames(sender, message))
        answers: list[Message] = []
        while not answers or not isinstance(answers[-1], q.ServedVersion):
            assert dealer.poll(int(PATIENCE * 1000)), "no answer"
            answers.append(Codec(q.COORDINATOR).parse(dealer.recv_multipart())[1])
    return answers


ORDERS: list[Callable[[str, str], m.AnyOrder]] = [
    lambda update, nonce: m.Open(update, nonce=nonce),
    lambda update, nonce: m.Connect(update, {}, nonce=nonce),
    lambda update, nonce: m.Stand(update, nonce=nonce),
    lambda update, nonce: m.Hold(update, nonce=nonce),
    lambda update, nonce: m.Advance(update, 3, nonce=nonce),
    lambda update, nonce: m.Run(update, nonce=nonce),
    lambda update, nonce: m.StandAndRun(update, nonce=nonce),
    lambda update, nonce: m.Commit(update, nonce=nonce),
]


@pytest.mark.parametrize("order", ORDERS)
def test_given_an_order_that_comes_too_early_then_it_is_refused(
    sink: Sink, leader: Mailbox, order: Callable[[str, str], m.AnyOrder]
) -> None:
    """Given the real coordinator and the right nonce, and no plan."""
    nonce = join(leader, sink)
    leader.send(sink.address, order("u", nonce))
    assert hear(leader, Refused).about == "u"


@pytest.mark.parametrize("order", [*ORDERS, lambda update, nonce: m.Abort(update, "", nonce=nonce)])
def test_given_an_order_in_the_name_of_the_coordinator_then_it_is_refused_without_the_nonce(
    sink: Sink, leader: Mailbox, order: Callable[[str, str], m.AnyOrder]
) -> None:
    """Given a stranger that knows who leads, and even which update."""
    join(leader, sink)
    answers = forge(sink, leader.address, order("u", ""), order("u", "0" * 32), order("x", ""))
    assert [type(answer) for answer in answers] == [Refused, Refused, Refused, q.ServedVersion]
    assert leader.receive(0.1) is None, "the coordinator hears nothing of it"
    leader.send(sink.address, invite(sink, "another"))
    hear(leader, m.Challenge)


def test_given_invitations_in_the_name_of_others_then_the_sink_is_free_for_who_is_there(
    sink: Sink, leader: Mailbox
) -> None:
    forge(sink, "ipc:///nobody", *[invite(sink, str(number)) for number in range(20)])
    forge(sink, leader.address, invite(sink, "forged", nonce="0" * 32))
    assert hear(leader, m.Challenge).update == "forged"
    join(leader, sink)


def test_given_an_invitation_of_an_update_that_is_over_then_it_does_not_count_again(
    sink: Sink, leader: Mailbox
) -> None:
    nonce = join(leader, sink)
    leader.send(sink.address, m.Abort("u", "enough", nonce=nonce))
    hear(leader, m.Aborted)
    forge(sink, leader.address, invite(sink, "u", nonce))
    assert hear(leader, m.Challenge).nonce != nonce
    join(leader, sink, "next")


def test_given_a_member_that_has_welcomed_its_coordinator_when_somebody_else_says_so_then_it_is_challenged(
    sink: Sink, leader: Mailbox
) -> None:
    with ParameterServer(Config.load(**PATIENT)) as source:
        source.register("v1", tensors=weights(1, layers=2, width=8))
        source.update("v1", [sink.address])
        assert source._here.mailbox is not None
        welcome = sink._challenges.welcome(source._here.mailbox.address)
        forge(sink, leader.address, invite(sink, "forged", nonce=welcome))
        assert hear(leader, m.Challenge).update == "forged"
        source.update("v1", [sink.address])


def test_given_a_coordinator_that_leads_another_update_by_now_then_the_sink_leaves_the_old_one(
    sink: Sink, leader: Mailbox
) -> None:
    """As when its process was killed, and another listens at the same address."""
    join(leader, sink, "old")
    leader.send(sink.address, invite(sink, "new"))
    leader.send(sink.address, invite(sink, "new", hear(leader, m.Challenge).nonce))
    hear(leader, m.Busy)
    hear(leader, m.Aborted)
    join(leader, sink, "new")


def test_given_another_coordinator_then_it_hears_that_the_sink_is_busy(sink: Sink, leader: Mailbox) -> None:
    nonce = join(leader, sink)
    with Mailbox(types=q.COORDINATOR, interval=0.1) as other:
        other.send(sink.address, invite(sink, "other"))
        other.send(sink.address, invite(sink, "other", hear(other, m.Challenge).nonce))
        hear(other, m.Busy)
    leader.send(sink.address, m.Hold("u", nonce=nonce))
    assert "out of order" in hear(leader, Refused).reason, "it is still in the first one's update"


def test_given_a_coordinator_that_invites_and_does_not_go_on_then_the_sink_is_free_soon(leader: Mailbox) -> None:
    """Long before update_timeout, and although the coordinator says that it is alive."""
    with closing(running_sink(join_timeout=0.3, update_timeout=600.0)) as sink:
        join(leader, sink)
        assert "did not go on within 0.6 s" in hear(leader, m.Aborted).reason
        join(leader, sink, "next")


def test_given_a_goodbye_of_somebody_else_then_nothing_is_closed(sink: Sink) -> None:
    with ParameterServer(Config.load(**PATIENT)) as source:
        source.register("v1", tensors=weights(1, layers=2, width=8))
        source.update("v1", [sink.address])
        routes = sink._table.names
        assert routes
        assert source._here.mailbox is not None
        forge(sink, source._here.mailbox.address, m.Goodbye(), m.Goodbye(nonce="0" * 32))
        assert sink._table.names == routes
    deadline = time.monotonic() + PATIENCE
    while sink._table.names:
        assert time.monotonic() < deadline, "the source's own goodbye counts"
        time.sleep(0.01)


def test_given_a_tainted_sink_then_only_an_update_that_ran_to_its_end_cures_it() -> None:
    with fleet(SinkSpec(loader=by_name, fault=Fault("load", 2, act="raise"))) as (running,):
        with ParameterServer(Config.load(**{**PATIENT, "bucket_bytes": "64KiB", "ring_depth": 1})) as source:
            source.register("v2", tensors=weights(2))
            with pytest.raises(TaintedError):
                source.update("v2", [running.address])
            with Mailbox(types=q.COORDINATOR, interval=0.1) as leader:
                leader.send(running.address, m.Invite("u", "v3", running.address, ()))
                nonce = hear(leader, m.Challenge).nonce
                leader.watch(running.address)
                leader.send(running.address, m.Invite("u", "v3", running.address, (), nonce=nonce))
                hear(leader, m.Join)
                leader.send(running.address, m.Commit("u", nonce=nonce))
                hear(leader, Refused)
                leader.send(running.address, m.Abort("u", "", nonce=nonce))
                assert hear(leader, m.Aborted).tainted
            state = running.state()
            assert state.tainted
            assert (state.version, state.served) == ("v1", "TaintedError")
            source.update("v2", [running.address])
        assert running.state().holds(weights(2))


# -- the other way: what is said to a source


def source_join(rank: int, uid: str, update: str = "") -> m.Join:
    manifest = Manifest("v2", (), ())
    return m.Join(
        update=update,
        role=Role.SOURCE,
        uid=uid,
        nonce=uid,
        label=uid,
        host="",
        budget=1,
        transports=(),
        unavailable={},
        routes=(),
        rank=rank,
        manifest=manifest,
    )


def test_given_joins_for_ranks_that_are_not_free_then_they_are_refused_and_the_real_ones_count(leader: Mailbox) -> None:
    config = Config.load(**{**PATIENT, "join_timeout": PATIENCE})
    members = Membership("u", leader, config, time.monotonic() + PATIENCE, Turn("an update"))
    kinds = q.PARTICIPANT
    with Mailbox(types=kinds) as first, Mailbox(types=kinds) as second, Mailbox(types=kinds) as stranger:
        first.send(leader.address, source_join(1, "first"))
        first.send(leader.address, source_join(1, "first"))
        deadline = time.monotonic() + PATIENCE
        while leader.pump(0.01) is False:
            assert time.monotonic() < deadline
        for rank in (0, 3, -1, 1):
            stranger.send(leader.address, source_join(rank, "stranger"))
        invited = msgspec.structs.replace(source_join(-1, "stranger", "u"), role=Role.SINK, invited="ipc:///x")
        stranger.send(leader.address, invited)
        while len(list(leader.unread())) < 7:
            leader.pump(0.1)
            assert time.monotonic() < deadline
        second.send(leader.address, source_join(2, "second"))
        Invitations(members, leader, config, Invitees(3, ())).gather(source_join(0, "zeroth"))
        assert [join.uid for join in members.joins] == ["zeroth", "first", "second"]
        refusals = [hear(stranger, Refused).reason for _ in range(5)]
    assert [reason.startswith("there are 3 sources") for reason in refusals[:3]] == [True] * 3
    assert "another process is source rank 1" in refusals[3]
    assert "nobody has invited" in refusals[4]


def test_given_a_rank_that_rank_0_does_not_expect_then_its_own_error_says_so(sink: Sink) -> None:
    """At once, and not when its update_timeout is over."""
    with Mailbox() as free:
        address = free.address

    def join_as_sixth() -> None:
        with ParameterServer(Config.load(**{**PATIENT, "coordinator": address}), rank=5, world_size=6) as sixth:
            sixth.register("v1", tensors=weights(1, layers=2, width=8))
            sixth.update("v1")

    with (
        ThreadPoolExecutor(1) as pool,
        ParameterServer(Config.load(**{**PATIENT, "coordinator": address})) as source,
    ):
        source.register("v1", tensors=weights(1, layers=2, width=8))
        joining = pool.submit(join_as_sixth)
        while not joining.done():
            source.update("v1", [sink.address])
        with pytest.raises(JoinError, match="rank 5 is none of those"):
            joining.result()


def test_given_a_refusal_that_somebody_forges_then_the_update_goes_on(sink: Sink) -> None:
    with ParameterServer(Config.load(**PATIENT)) as source, Mailbox(types=q.PARTICIPANT) as stranger:
        source.register("v1", tensors=weights(1, layers=2, width=8))
        source.update("v1", [sink.address])
        assert source._here.mailbox is not None
        for _ in range(100):
            stranger.send(source._here.mailbox.address, Refused("I do not like it"))
            stranger.send(source._here.mailbox.address, m.Aborted("x", True))
        source.update("v1", [sink.address])


def test_given_a_sink_at_a_tcp_address_and_no_secret_then_the_cure_is_said_before_anything_is_asked() -> None:
    with ParameterServer(Config.load(**PATIENT)) as source:
        source.register("v1", tensors=weights(1, layers=2, width=8))
        with pytest.raises(ConfigError, match=r"secret_file.*insecure"):
            source.update("v1", ["tcp://127.0.0.1:9"])
    with pytest.raises(ConfigError, match=r"secret_file.*insecure"):
        ask_version("tcp://127.0.0.1:9", Config.load(**PATIENT))
