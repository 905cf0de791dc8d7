"""A source that does not prove its plan: because of a mistake, or because it is another version, or somebody else's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import CoverageError, PlanMismatchError, UpdateAbortedError
from ckpt_transport.planning import Plan, Stages, plan
from ckpt_transport.update import plan_cache
from tests.fleet import SinkSpec, by_name, fleet, weights
from tests.patience import PATIENT

replace = msgspec.structs.replace


def without_the_last_bucket(*args: Any) -> Plan:
    made = plan(*args)
    last = len(made.buckets) - 1
    return replace(made, buckets=made.buckets[:last], stages=Stages.of(s for s in made.stages if s.bucket != last))


def in_pieces(*args: Any) -> Plan:
    """Made as if no loader took whole tensors."""
    manifest, topology, *rest = args
    members = tuple(replace(member, whole_tensors=False) for member in topology.participants)
    return plan(manifest, replace(topology, participants=members), *rest)


@pytest.mark.parametrize(
    ("transport", "wrong", "cause", "match"),
    [
        ("shm", without_the_last_bucket, CoverageError, r"rank 1 \(sink 0.* are missed by sinks \[1\]"),
        ("gloo", in_pieces, PlanMismatchError, r"rank 1 \(sink 0.*'takes tensors whole' is False in it and True here"),
    ],
    ids=["lacking", "in-pieces"],
)
def test_given_a_plan_that_nobody_proved_when_it_is_wrong_then_sinks_refuse_it(
    monkeypatch: pytest.MonkeyPatch, transport: str, wrong: Any, cause: type[Exception], match: str
) -> None:
    """Given a source without a verifier, when its plan leaves bytes out or cuts tensors, then no sink takes it."""
    monkeypatch.setattr(plan_cache, "plan", wrong)
    monkeypatch.setattr(plan_cache, "verify", lambda made: None)
    settings = Config.load(transport=transport, bucket_bytes="64KiB", **PATIENT)
    with fleet(SinkSpec(loader=by_name)) as (sink,):
        with ParameterServer(settings) as server:
            server.register("v2", tensors=weights(2))
            with pytest.raises(UpdateAbortedError, match=match) as caught:
                server.update("v2", [sink.address])
        assert isinstance(caught.value.__cause__, cause)
        state = sink.state()
        assert (state.version, state.served) == ("v1", "")
        assert state.holds(weights(1))
        monkeypatch.undo()
        with ParameterServer(settings) as server:
            server.register("v3", tensors=weights(3))
            server.update("v3", [sink.address])
        assert sink.state().holds(weights(3))
