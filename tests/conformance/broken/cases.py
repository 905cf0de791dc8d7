"""Which check must find which broken transport, and what it must say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ckpt_transport.transports.interface import Transport
from ckpt_transport_shm import ShmTransport
from tests.conformance.broken import others, probes, reading, scale
from tests.conformance.transports import ReadTransport, SocketTransport

WRONG_BYTES = "are not those that were sent"


@dataclass(frozen=True)
class Case:
    """One broken transport.

    Attributes:
        transport: it.
        twin: the same without the defect.
        found_by: the checks that must fail, each with a part of its explanation.
        deadline: seconds for a check; few for one that fails by waiting until the end.
    """

    transport: type[Transport]
    twin: type[Transport]
    found_by: Mapping[str, str]
    deadline: float = 60.0

    @property
    def name(self) -> str:
        return self.transport.__name__


CASES = (
    Case(reading.CompletesBeforeRead, ReadTransport, {"source_may_overwrite": WRONG_BYTES}),
    Case(others.ReusesSlotEarly, ShmTransport, {"back_pressure": WRONG_BYTES, "source_may_overwrite": WRONG_BYTES}),
    Case(others.GivesBackTooMany, ShmTransport, {"given_back_together": WRONG_BYTES}),
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
        deadline=16.0,
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
    Case(probes.ProbeOpensFiles, ReadTransport, {"probe_is_cheap": "file descriptors"}),
    Case(probes.ProbeRaises, ReadTransport, {"probe_is_cheap": "probe() raised OSError: no such device"}),
    Case(probes.ProbeHangs, ReadTransport, {"probe_is_cheap": "probe() does not return"}, deadline=2.0),
    Case(probes.ProbeSaysTrue, ReadTransport, {"probe_is_cheap": "probe() returned True"}),
    Case(probes.ProbeDies, ReadTransport, {"probe_is_cheap": "exit code 3"}),
    Case(others.NeverOpens, SocketTransport, {"route_opens": "ranks 0, 1: no route can be opened: OSError"}),
    Case(others.MarksWithoutOrder, SocketTransport, {"a_device_orders": "no stream that would order it"}),
    Case(others.LeaksOnClose, ShmTransport, {"nothing_leaks": "segments"}, deadline=20.0),
    Case(scale.FlipsABit, ReadTransport, {"transfer_after_transfer": "1 of 1"}),
    Case(scale.TiresOfASlot, ReadTransport, {"transfer_after_transfer": WRONG_BYTES}),
    Case(scale.EightRequests, ReadTransport, {"many_in_flight": WRONG_BYTES}),
    Case(scale.EightMiBOfASpan, ReadTransport, {"any_size": WRONG_BYTES}),
    Case(scale.LosesAByteAtPowers, ReadTransport, {"any_size": "1 of 65536 bytes"}),
    Case(scale.OddIsEven, ReadTransport, {"any_size": "1 of 1 bytes", "any_number_of_spans": "1 of 1 bytes"}),
    Case(scale.SixtyFourSpans, ReadTransport, {"any_number_of_spans": "in view 64 of"}),
    Case(scale.ThreeMembers, ReadTransport, {"many_ranks": "rank 3"}),
    Case(scale.OffsetsOf24Bits, ReadTransport, {"any_offset": WRONG_BYTES}),
    Case(scale.SwapsTwins, ReadTransport, {"equal_neighbours": WRONG_BYTES}),
    Case(scale.ReadsOnce, ReadTransport, {"equal_neighbours": WRONG_BYTES}),
    Case(scale.RoundsToLines, ReadTransport, {"registered_again": WRONG_BYTES}),
    Case(scale.ShortOfTheEnd, ReadTransport, {"any_size": WRONG_BYTES}),
    Case(scale.EightBitRegions, ReadTransport, {"many_regions": WRONG_BYTES}),
    Case(scale.SixteenBitSeq, ReadTransport, {"any_seq": "which does not expect it"}),
    Case(scale.OnePeerEach, ReadTransport, {"two_routes": WRONG_BYTES}),
    Case(scale.ForgetsOthers, ReadTransport, {"two_routes": "described 0 regions"}),
    Case(scale.RemembersRegions, ReadTransport, {"registered_again": WRONG_BYTES}),
)

LONG_CASES = (Case(scale.ShortCount, ReadTransport, {"spans_past_16_bits": WRONG_BYTES}, deadline=200.0),)
