"""Plans are explained to people, as lines of plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from ckpt_transport.planning.host_names import for_people
from ckpt_transport.planning.pauses import Pauses
from ckpt_transport.planning.values.plan import IN_PLACE, Hop, Plan, StageKind
from ckpt_transport.planning.values.prediction import Prediction
from ckpt_transport.sizes import count, duration, size

HOPS_SHOWN = 12
"""Of a long line, so many."""
MAPPING_SHOWN = 240
"""Of the rules of a mapping, so many characters."""


def explain(plan: Plan, pauses: Pauses | None = None) -> str:
    """Say in lines of plain text what the plan moves, how, with how much memory, and why so.

    Args:
        plan: what is done.
        pauses: for how long that is expected to hold requests, where it is known how sinks take it.
    """
    sizes = [bucket.nbytes for bucket in plan.buckets]
    split = Counter(piece.tensor for bucket in plan.buckets for piece in bucket.pieces)
    kinds = _kinds(plan)
    lines = [
        *_moved(plan),
        f"buckets   {len(sizes):,}, largest {size(max(sizes))}"
        + (f", {sum(1 for n in split.values() if n > 1):,} tensors split" if max(split.values()) > 1 else ""),
        *_routed(plan),
        *_kept(plan),
        "stages    " + ", ".join(f"{kinds[kind]:,} {kind.name.lower()}" for kind in StageKind if kinds[kind]),
        *_expected(plan, pauses),
        f"digest    {plan.digest[:16]}",
        *_listed("why", plan.notes),
        *_listed("besides", plan.others),
    ]
    return for_people("\n".join(lines), plan.topology)


def summarize(plan: Plan, pauses: Pauses | None = None) -> str:
    """Say in fewer lines what most people want to know of a plan: what moves, which way, for how long, and why so.

    Args:
        plan, pauses: as those of :func:`explain`.
    """
    lines = [*_moved(plan), *_routed(plan), *_expected(plan, pauses), *_listed("why", plan.notes)]
    return for_people("\n".join(lines), plan.topology)


def _moved(plan: Plan) -> Iterator[str]:
    """What moves, and between whom."""
    manifest, topology = plan.manifest, plan.topology
    hosts = len({participant.host for participant in topology.participants})
    yield f"version   {manifest.version}: {len(manifest.specs):,} tensors, {size(manifest.nbytes)}" + (
        ", what not every sink has yet" if manifest.present else ""
    )
    yield from (f"mapping   {_short(mapping)}" for mapping in manifest.mappings)
    yield from (f"computed  {count(len(each.tensors), 'tensor')}: {each.how}" for each in manifest.conversions)
    yield (
        f"ranks     {count(len(topology.sources), 'source')}, {count(len(topology.sinks), 'sink')}, "
        f"{count(hosts, 'host')}"
    )


def _routed(plan: Plan) -> Iterator[str]:
    """Who sends what to whom."""
    manifest, topology = plan.manifest, plan.topology
    if len(manifest.owners) > 1:
        yield "owners    " + _shares(plan)
    narrow = plan.moves_shares
    moved = plan.bytes_to
    if narrow or min(moved.values()) < sum(bucket.payload for bucket in plan.buckets):
        yield "shares    " + _taken(plan, moved)
    carried = _carried(plan)
    for number, hop in enumerate(plan.hops[:HOPS_SHOWN]):
        then = "" if hop.legs[0].sender in topology.sources else "then "
        nbytes = f", {size(carried[number])} of {size(manifest.nbytes)}" if narrow else ""
        yield f"{'route' if number == 0 else '':<10}{then}{_describe(plan, hop)}{nbytes}"
    if len(plan.hops) > HOPS_SHOWN:
        yield f"{'':<10}and {len(plan.hops) - HOPS_SHOWN} more hops"


def _kept(plan: Plan) -> Iterator[str]:
    """Where bytes lie on their way."""
    filled = sum(1 for bucket in plan.buckets if bucket.fill_slot != IN_PLACE)
    yield "source    " + (f"fills {filled:,} buckets into slots first" if filled else "sends from where the bytes lie")
    if plan.rings:
        ring = max(plan.rings, key=lambda ring: ring.nbytes)
        slots = f"{count(ring.depth, 'slot')} of {size(ring.slot_bytes)} = {size(ring.nbytes)}"
        yield f"memory    {slots} at {count(len({ring.rank for ring in plan.rings}), 'rank')}"
    else:
        yield "memory    no slots: sinks read the source's memory in place"


def _expected(plan: Plan, pauses: Pauses | None) -> Iterator[str]:
    """How long it takes."""
    yield f"expected  {duration(plan.prediction.seconds)}; {slowest(plan.prediction)}"
    if pauses is not None:
        yield f"held      {pauses}"


def _listed(title: str, items: Iterable[str]) -> list[str]:
    return [f"{'' if number else title:<10}{item}" for number, item in enumerate(items)]


def _short(mapping: str) -> str:
    """As many of its rules as are read with interest."""
    return mapping if len(mapping) <= MAPPING_SHOWN else f"{mapping[:MAPPING_SHOWN]}..."


def slowest(prediction: Prediction) -> str:
    """Say which link a plan waits for, and why."""
    rate = f", {size(prediction.nbytes)} at {prediction.rate / 1e9:.3g} GB/s" if prediction.nbytes else ""
    how = "measured" if prediction.measured else "assumed"
    return f"{prediction.link} is busy for {duration(prediction.busy)}{rate} ({how})"


def _shares(plan: Plan) -> str:
    """What each owner sends."""
    sent: Counter[int] = Counter()
    for bucket in plan.buckets:
        sent[plan.owner(bucket)] += bucket.payload
    shown = [f"{owner} sends {size(sent[owner])}" for owner in sorted(sent)]
    return ", ".join(shown[:8]) + (f", and {len(shown) - 8} more" if len(shown) > 8 else "")


def _taken(plan: Plan, moved: Mapping[int, int]) -> str:
    """How much goes to each sink, or is read by it."""
    total = max(plan.manifest.nbytes, 1)
    least, most = min(moved.values()), max(moved.values())
    what = "is sent what it needs" if plan.moves_shares else "reads what it needs of the memory that it maps"
    return (
        f"each sink {what}, {size(least)} to {size(most)} of {size(total)} ({least / total:.1%} to {most / total:.1%})"
    )


def _kinds(plan: Plan) -> Counter[StageKind]:
    """How many stages there are of each kind."""
    kinds: Counter[StageKind] = Counter()
    for pattern, times in Counter(block.pattern for block in plan.stages.blocks).items():
        for stage in plan.stages.patterns[pattern]:
            kinds[stage.kind] += times
    return kinds


def _carried(plan: Plan) -> Counter[int]:
    """The bytes that each hop carries."""
    payloads: Counter[int] = Counter()
    for block in plan.stages.blocks:
        payloads[block.pattern] += plan.buckets[block.bucket].payload
    carried: Counter[int] = Counter()
    for pattern, payload in payloads.items():
        for stage in plan.stages.patterns[pattern]:
            if stage.kind is StageKind.TRANSFER:
                carried[stage.hop] += payload
    return carried


def _describe(plan: Plan, hop: Hop) -> str:
    legs = []
    for leg in hop.legs:
        receivers = list(leg.receivers)
        shown = ", ".join(map(str, receivers[:6])) + (f", ... ({len(receivers)} in all)" if len(receivers) > 6 else "")
        legs.append(f"{leg.sender} -> {shown} over {plan.routes[leg.route].transport}")
    return "; ".join(legs[:4]) + (f"; and {len(legs) - 4} more" if len(legs) > 4 else "")
