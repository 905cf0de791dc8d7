"""What source ranks hold is read once, as long as they say the same of it."""

from __future__ import annotations

import time

import msgspec
import pytest

from ckpt_transport import Config
from ckpt_transport.control import Mailbox
from ckpt_transport.control.messages import Refused
from ckpt_transport.planning import Manifest, Role
from ckpt_transport.service import questions as q
from ckpt_transport.update import messages as m
from ckpt_transport.update.held_manifests import ManifestEncoder, ManifestReader
from ckpt_transport.update.introduction import completed, shortened
from ckpt_transport.update.invitations import Invitees
from ckpt_transport.update.membership import Membership
from ckpt_transport.update.source_arrivals import SourceArrivals
from ckpt_transport.update.turn import Turn
from tests.patience import DEADLINE, PATIENT
from tests.unit.update.test_invitations import hear
from tests.unit.worlds import manifest


def join(held: Manifest, rank: int = 1) -> m.Join:
    return m.Join(
        role=Role.SOURCE,
        uid=f"{rank}",
        nonce=f"{rank}",
        label=f"source {rank}",
        host="",
        budget=1,
        transports=(),
        unavailable={},
        rank=rank,
        manifest=held,
    )


def travelled(said: m.Join) -> m.Join:
    """As it is when somebody else has read it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(said), type=m.Join)


def test_given_steps_of_the_same_weights_then_their_tensors_are_encoded_and_decoded_once() -> None:
    encoder, reader = ManifestEncoder(), ManifestReader()
    steps = [manifest([100, 200], version=f"step-{number}") for number in range(3)]
    said = [shortened(join(step), encoder) for step in steps]
    read = [completed(travelled(each), reader).manifest for each in said]
    assert read == steps
    assert all(each.held is said[0].held for each in said)
    assert len({id(held.tensors) for held in read if held is not None}) == 1


def test_given_other_weights_or_another_rank_then_they_are_read_anew() -> None:
    reader = ManifestReader()
    for held in (manifest([100, 200]), manifest([100]), manifest([100, 200])):
        for rank in (1, 2):
            whole = join(held, rank)
            assert completed(travelled(shortened(whole, ManifestEncoder())), reader) == whole


def test_given_an_introduction_that_is_complete_then_it_stays_as_it_is() -> None:
    whole = join(manifest([100]))
    assert completed(whole, ManifestReader()) is whole


@pytest.mark.parametrize("held", [b"\xc1", b"\x81\xa1\xff\x01", msgspec.msgpack.encode({"version": 1})])
def test_given_bytes_that_are_no_manifest_then_who_says_them_is_refused_and_the_next_one_counts(held: bytes) -> None:
    config, encoder = Config.load(**PATIENT), ManifestEncoder()
    with Mailbox(types=q.COORDINATOR) as leader, Mailbox(types=q.PARTICIPANT) as source:
        members = Membership("u", leader, config, time.monotonic() + DEADLINE, Turn("an update"))
        arrivals = SourceArrivals(members, leader, Invitees(2, ()), [])
        whole = join(manifest([100]))
        arrivals.begin(join(manifest([1]), rank=0))
        good = shortened(whole, encoder)
        for said in (msgspec.structs.replace(good, held=held), good):
            assert arrivals.missing == [1]
            source.send(leader.address, said)
            received = leader.receive(DEADLINE)
            assert received is not None
            sender, message = received
            assert isinstance(message, m.Join)
            arrivals.admit(sender, message)
        assert arrivals.in_order()[1][1] == whole
        assert "what source rank 1 holds cannot be read" in hear(source, Refused).reason
