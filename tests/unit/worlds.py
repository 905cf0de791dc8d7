"""Imagined fleets for tests: manifests, topologies and transports, drawn at random or built by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from hypothesis import strategies as st

from ckpt_transport import dtypes
from ckpt_transport.memory import MemoryKind, StridedRange
from ckpt_transport.planning import (
    AUTO,
    EVERYTHING,
    ByteRangeSet,
    Extent,
    Manifest,
    PlacedTensor,
    Plan,
    RankInfo,
    Role,
    Settings,
    Share,
    TensorSpec,
    Topology,
    digest_of,
    plan,
)
from ckpt_transport.planning.broadcast_trees import BroadcastTree, direct_and_relayed
from ckpt_transport.planning.chain_broadcast import chain_broadcasts
from ckpt_transport.transports.interface import FanOut, Reach, Traits

PLENTY = 1 << 40
"""A memory budget that never matters."""
HOST_MEMORY = frozenset({MemoryKind.PRIVATE, MemoryKind.SHARED})


def traits(
    *,
    reach: Reach = Reach.NETWORK,
    sends_from: frozenset[MemoryKind] = HOST_MEMORY,
    maps_memory: bool = False,
    fan_out: FanOut = FanOut.LINEAR,
    bandwidth: float = 1e9,
    latency: float = 1e-4,
) -> Traits:
    return Traits(
        reach=reach,
        sends_from=sends_from,
        maps_memory=maps_memory,
        fan_out=fan_out,
        bandwidth=bandwidth,
        latency=latency,
    )


EXPERT, COMMON = 4096, 512
"""Bytes of the tensors of a mixture."""
EXPERTS = 8

WIRE = traits(fan_out=FanOut.TREE)
"""Collective, between hosts."""
WINDOW = traits(
    reach=Reach.HOST,
    sends_from=frozenset({MemoryKind.SHARED}),
    maps_memory=True,
    fan_out=FanOut.CONSTANT,
    bandwidth=4e10,
)
"""Mapped, within a host."""
READ = traits(sends_from=frozenset({MemoryKind.PRIVATE}), bandwidth=5e9)
"""One-sided, between hosts."""
POST = traits(reach=Reach.HOST, sends_from=frozenset(), bandwidth=3e9)
"""Messages within a host, out of slots only."""
SCREEN = traits(sends_from=frozenset({MemoryKind.SHARED}), maps_memory=True, fan_out=FanOut.CONSTANT, bandwidth=2e9)
"""Mapped, between hosts."""
INVENTED: Mapping[str, Traits] = {"post": POST, "read": READ, "screen": SCREEN, "window": WINDOW, "wire": WIRE}


# -- by hand -----------------------------------------------------------------------------------------------------------


def manifest(
    *sizes: Sequence[int], kind: MemoryKind = MemoryKind.SHARED, version: str = "step-2", start: int = 0
) -> Manifest:
    """One extent of U8 tensors of these sizes for every owner 0, 1, ...; they lie one behind the other."""
    extents: list[Extent] = []
    tensors: list[PlacedTensor] = []
    for owner, own in enumerate(sizes):
        offset = start
        for number, nbytes in enumerate(own):
            tensors.append(PlacedTensor(TensorSpec(f"{owner}.{number}", "U8", (nbytes,)), owner, offset, nbytes))
            offset += nbytes
        extents.append(Extent(owner, offset, kind))
    return Manifest(version, tuple(extents), tuple(tensors))


def topology(
    sources: Sequence[str],
    sinks: Sequence[str],
    *,
    budget: int = PLENTY,
    transports: Sequence[str] = tuple(INVENTED),
    whole_tensors: bool = False,
) -> Topology:
    """Sources and sinks on the hosts of these names."""
    roles = [(Role.SOURCE, host) for host in sources] + [(Role.SINK, host) for host in sinks]
    return Topology(
        tuple(
            RankInfo(rank, role, host, budget, tuple(transports), whole_tensors and role is Role.SINK)
            for rank, (role, host) in enumerate(roles)
        )
    )


@dataclass(frozen=True)
class World:
    """Everything a plan is made from."""

    manifest: Manifest
    topology: Topology
    traits: Mapping[str, Traits]
    settings: Settings

    def plan(self) -> Plan:
        return plan(self.manifest, self.topology, self.traits, self.settings)


def chained(transport: str = "wire+window", *, bucket_bytes: int = 1024, ring_depth: int = 2) -> World:
    """Two sources, one of them next to sinks; three hosts, so that there are near sinks, relays and what they serve."""
    return World(
        manifest([700, 0, 1500, 300, 900, 40], [1024, 2000, 5]),
        topology(["a", "d"], ["a", "a", "b", "b", "c", "c"]),
        INVENTED,
        Settings(transport=transport, bucket_bytes=bucket_bytes, ring_depth=ring_depth),
    )


def filled(transport: str = "post", *, ring_depth: int = 2, tensors: int = 5) -> World:
    """One source that has to fill slots first, two sinks, and so many tensors."""
    return World(
        manifest([1000] * tensors, kind=MemoryKind.PRIVATE),
        topology(["a"], ["a", "a"]),
        INVENTED,
        Settings(transport=transport, bucket_bytes=1024, ring_depth=ring_depth),
    )


# -- by chance ---------------------------------------------------------------------------------------------------------

SHAPES = st.one_of(
    st.just(()),
    st.tuples(st.integers(0, 4), st.integers(0, 64)),
    st.tuples(st.integers(0, 600)),
    st.sampled_from([(128,), (256,), (512,), (1024,), (255,), (257,)]),
)


def mixture(layers: int = 3) -> Manifest:
    """Of each layer, a tensor that everybody needs, and eight experts."""
    tensors: list[PlacedTensor] = []
    offset = 0
    for layer in range(layers):
        for name, nbytes in [("attention", COMMON), *((f"experts.{n}", EXPERT) for n in range(EXPERTS))]:
            spec = TensorSpec(f"layers.{layer}.{name}", "U8", (nbytes,))
            tensors.append(PlacedTensor(spec, 0, offset, nbytes))
            offset += nbytes
    return Manifest("step-2", (Extent(0, offset, MemoryKind.SHARED),), tuple(tensors))


def sharing(fleet: Topology, version: Manifest, *wanted: Sequence[tuple[str, int, int]] | None) -> Topology:
    """The same fleet, whose sinks need these ranges each, or everything."""
    digest = digest_of(version.specs.values())
    shares = tuple(Share(digest, tuple(runs)) for runs in wanted if runs is not None)
    numbers = iter(range(len(shares)))
    mine = dict(zip(fleet.sinks, (EVERYTHING if runs is None else next(numbers) for runs in wanted), strict=True))
    members = (msgspec.structs.replace(each, share=mine.get(each.rank, EVERYTHING)) for each in fleet.participants)
    return Topology(tuple(members), shares)


def alternating(transport: str, hosts: str) -> World:
    """A mixture of whose tensors sinks need every other one, so that what each needs lies apart.

    They are on GPUs, and one of each host receives over a wire what the others map.
    """
    version = mixture()
    halves = [[(each.spec.name, 0, each.nbytes) for each in version.tensors[first::2]] for first in range(2)]
    wanted = [halves[rank % 2] for rank in range(len(hosts))]
    known = {name: msgspec.structs.replace(each, latency=0.0) for name, each in INVENTED.items()}
    fleet = sharing(topology(["a"], hosts), version, *wanted)
    placed = (
        msgspec.structs.replace(each, devices=("gpu",)) if each.role is Role.SINK else each
        for each in fleet.participants
    )
    fleet = Topology(tuple(placed), fleet.shares)
    return World(version, fleet, known, Settings(transport=transport, bucket_bytes=8192, range_bytes=256))


@st.composite
def manifests(draw: st.DrawFn, owners: int) -> Manifest:
    """Every owner has up to three extents; tensors lie in them in any order, with gaps, as in a mapped file."""
    extents: list[Extent] = []
    tensors: list[PlacedTensor] = []
    for owner in range(owners):
        for _ in range(draw(st.integers(1, 3))):
            offset = draw(st.integers(0, 300))
            for _ in range(draw(st.integers(0, 5))):
                spec = TensorSpec(f"t{len(tensors)}", draw(st.sampled_from(["F32", "BF16", "I64", "U8"])), draw(SHAPES))
                align = dtypes.alignment(spec.dtype)
                offset = -(-(offset + draw(st.integers(0, 40))) // align) * align
                tensors.append(PlacedTensor(spec, len(extents), offset, spec.nbytes))
                offset += spec.nbytes
            extents.append(Extent(owner, offset + draw(st.integers(0, 9)), draw(st.sampled_from(sorted(HOST_MEMORY)))))
    if not tensors:
        tensors.append(PlacedTensor(TensorSpec("only", "U8", (0,)), 0, 0, 0))
    return Manifest("step-2", tuple(extents), tuple(draw(st.permutations(tensors))))


@st.composite
def worlds(draw: st.DrawFn, budgets: st.SearchStrategy[int] | None = None) -> World:
    """A fleet that at least one transport spans; ``budgets`` are drawn for every participant."""
    sources, sinks = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    hosts = st.sampled_from(["a", "b", "c"])
    whole = draw(st.booleans())
    participants = tuple(
        RankInfo(
            rank,
            Role.SOURCE if rank < sources else Role.SINK,
            draw(hosts),
            PLENTY if budgets is None else draw(budgets),
            tuple(INVENTED),
            whole_tensors=whole and rank >= sources and draw(st.booleans()),
        )
        for rank in range(sources + sinks)
    )
    drawn = draw(manifests(sources))
    everybody = draw(shared(Topology(participants), drawn))
    names = draw(st.sets(st.sampled_from(sorted(INVENTED)))) | {"wire"}
    speeds = st.sampled_from([1e8, 1e9, 1e10, 1e11])
    known = {
        name: traits(
            reach=INVENTED[name].reach,
            sends_from=INVENTED[name].sends_from,
            maps_memory=INVENTED[name].maps_memory,
            fan_out=INVENTED[name].fan_out,
            bandwidth=draw(speeds),
            latency=draw(st.sampled_from([0.0, 1e-5, 1e-3])),
        )
        for name in sorted(names)
    }
    settings = Settings(
        transport=draw(st.sampled_from([AUTO, *spanning(drawn, everybody, known)])),
        bucket_bytes=draw(st.sampled_from([1, 256, 500, 1024, 4096])),
        ring_depth=draw(st.integers(1, 4)),
        range_bytes=draw(st.sampled_from([1, 100, 100_000])),
    )
    return World(drawn, everybody, known, settings)


@st.composite
def shared(draw: st.DrawFn, fleet: Topology, drawn: Manifest) -> Topology:
    """The same fleet, in which some sinks need ranges of some tensors only, and slices of others."""
    shares = []
    for _ in range(draw(st.integers(0, 3))):
        runs, slices = ByteRangeSet(), []
        for tensor in drawn.tensors:
            if tensor.nbytes > 1 and draw(st.booleans()):
                runs.add(tensor.spec.name, 0, tensor.nbytes)
                slices.append((tensor.spec.name, draw(strided_ranges(tensor.nbytes))))
                continue
            for _ in range(draw(st.integers(0, 2)) if tensor.nbytes else 0):
                start = draw(st.integers(0, tensor.nbytes - 1))
                runs.add(tensor.spec.name, start, draw(st.integers(1, tensor.nbytes - start)))
        shares.append(Share(digest_of(drawn.specs.values()), tuple(runs), tuple(slices)))
    everything = st.just(EVERYTHING)
    chosen = st.one_of(everything, st.integers(0, len(shares) - 1)) if shares else everything
    participants = tuple(
        msgspec.structs.replace(member, share=draw(chosen)) if member.role is Role.SINK else member
        for member in fleet.participants
    )
    return Topology(participants, tuple(shares))


@st.composite
def strided_ranges(draw: st.DrawFn, nbytes: int) -> StridedRange:
    """Runs of any length, one byte included, at any distance, within so many bytes."""
    start = draw(st.integers(0, nbytes - 1))
    length = draw(st.integers(1, nbytes - start))
    stride = length + draw(st.integers(1, 9))
    runs = draw(st.integers(1, (nbytes - start - length) // stride + 1))
    return StridedRange(start, length, runs, stride if runs > 1 else 0)


def spanning(manifest: Manifest, topology: Topology, known: Mapping[str, Traits]) -> list[str]:
    """The transports and chains that bring every owner's buckets to every sink."""
    every = "+".join(f"{name}-chain" for name in known)
    found = [
        {
            tree.name
            for tree in (
                *direct_and_relayed(owner, topology.sinks, topology, known),
                *chain_broadcasts(owner, manifest.owners, topology.sinks, topology, known, every),
            )
            if isinstance(tree, BroadcastTree)
        }
        for owner in manifest.owners
    ]
    return sorted(set.intersection(*found))
