"""Which check must find which broken transport, and what it must say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ckpt_transport.transport import Transport
from ckpt_transport_shm import ShmTransport
from tests.conformance.broken import others, reading
from tests.conformance.transports import ReadTransport, SocketTransport

WRONG_BYTES = "are not those that were sent"


@dataclass(frozen=True)
class Case:
    """One broken transport.

    Attributes:
        transport: it.
        twin: the same without the defect.
        found_by: the checks that must fail, each with a part of its explanation.
    """

    transport: type[Transport]
    twin: type[Transport]
    found_by: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.transport.__name__


CASES = (
    Case(reading.CompletesBeforeRead, ReadTransport, {"source_may_overwrite": WRONG_BYTES}),
    Case(others.ReusesSlotEarly, ShmTransport, {"back_pressure": WRONG_BYTES, "source_may_overwrite": WRONG_BYTES}),
    Case(others.Reorders, SocketTransport, {"transfers_stay_apart": "rank 1"}),
    Case(reading.LosesLastSpan, ReadTransport, {"every_span_arrives": "20001 bytes in view 39"}),
    Case(reading.ReadsWords, ReadTransport, {"bytes_arrive": "1 of 1 bytes in view 0"}),
    Case(reading.Torn, ReadTransport, {"receive_is_complete": WRONG_BYTES}),
    Case(others.DoneWhenEnqueued, SocketTransport, {"late_sender": "said done, although", "bytes_arrive": WRONG_BYTES}),
    Case(reading.WritesBeside, ReadTransport, {"nothing_else_is_written": "outside all spans"}),
    Case(
        reading.HangsWhenPeerDies,
        ReadTransport,
        {"sender_dies": "rank 0 was killed", "receiver_dies": "rank 2 was killed"},
    ),
    Case(
        reading.SwallowsErrors,
        ReadTransport,
        {"abort_reaches_everyone": "said done, although", "another_plan": "said done, although"},
    ),
    Case(reading.KeepsReason, ReadTransport, {"abort_reaches_everyone": "something went wrong"}),
    Case(reading.AcceptsAnyPlan, ReadTransport, {"another_plan": "fewer bytes"}),
    Case(reading.ClosesBusyRegions, ReadTransport, {"busy_region": "RegionBusyError is promised"}),
    Case(reading.TakesAnyOrder, ReadTransport, {"wrong_posts_are_refused": "transfer 7 after 7 was accepted"}),
    Case(
        reading.NeverUnusable,
        ReadTransport,
        {"closed_endpoint": "after close() was accepted", "broken_endpoint": "after abort() was accepted"},
    ),
    Case(reading.ConnectsOnce, ReadTransport, {"reconnect": "rank 1"}),
    Case(reading.KnowsOneSender, ReadTransport, {"senders_take_turns": "described 0 regions"}),
    Case(reading.RoundsUp, ReadTransport, {"promised_memory": "70003 bytes were asked for"}),
    Case(reading.ProbeOpensFiles, ReadTransport, {"probe_is_cheap": "file descriptors"}),
    Case(others.MarksWithoutOrder, SocketTransport, {"a_device_orders": "no stream that would order it"}),
    Case(others.LeaksOnClose, ShmTransport, {"nothing_leaks": "segments"}),
)
