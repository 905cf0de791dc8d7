"""A plan is a value that is equal on every participant of an update."""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

import msgspec

from ckpt_transport.decoding import prepared
from ckpt_transport.errors import PlanError
from ckpt_transport.memory import APART, no_collections
from ckpt_transport.planning.values.block_order import BlockOrder
from ckpt_transport.planning.values.columns import decode, encode
from ckpt_transport.planning.values.manifest import Manifest, TensorSpec
from ckpt_transport.planning.values.placed_bytes import PlacedBytes
from ckpt_transport.planning.values.prediction import NOTHING_MOVES, Prediction
from ckpt_transport.planning.values.reads import SinkReads
from ckpt_transport.planning.values.stages import Stage as Stage
from ckpt_transport.planning.values.stages import StageKind as StageKind
from ckpt_transport.planning.values.stages import Stages as Stages
from ckpt_transport.planning.values.topology import Topology

PLAIN, COLUMNS = b"m", b"c"
"""The first byte of an encoded plan says which form it has."""
MOST_PLAIN = 256 << 20
"""Rank 0 sends plans of so many bytes, all members' together, as msgpack: columns take longer to make and to read than
they save of these."""


class Route(msgspec.Struct, frozen=True, array_like=True):
    """A route is a transport and the ranks that use it.

    Attributes:
        transport: its name.
        ranks: the members.
        maps_memory: receivers see the sender's memory and need no slot.
        devices: the UUID of the GPU that each member uses here, in the order of ``ranks``; empty for none.
    """

    transport: str
    ranks: tuple[int, ...]
    maps_memory: bool
    devices: tuple[str, ...] = ()


class Leg(msgspec.Struct, frozen=True, array_like=True):
    """A leg is one sender and its receivers on one route."""

    route: int
    sender: int
    receivers: tuple[int, ...]


class Hop(msgspec.Struct, frozen=True, array_like=True):
    """A hop is legs that carry a bucket at the same time. A tree of hops brings it from its owner to its receivers."""

    legs: tuple[Leg, ...]


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A piece is a range of bytes of one tensor in a bucket.

    Attributes:
        tensor: index into the manifest's tensors.
        tensor_offset: where the range starts in the tensor, in bytes.
        bucket_offset: where it starts in the bucket, in bytes.
        nbytes: its length.
    """

    tensor: int
    tensor_offset: int
    bucket_offset: int
    nbytes: int


IN_PLACE = -1
"""Slot number of a bucket that is used where it lies."""


class ExtentRange(msgspec.Struct, frozen=True, array_like=True):
    """A range of bytes of an extent in a bucket.

    Attributes:
        offset: where it starts in the extent, in bytes, a multiple of 256.
        bucket_offset: where it starts in the bucket, in bytes, a multiple of 256.
        nbytes: its length.
    """

    offset: int
    bucket_offset: int
    nbytes: int


class Bucket(msgspec.Struct, frozen=True, array_like=True):
    """A bucket is a range of bytes of an extent, or several one behind the other. It moves through the pipeline as one.

    Attributes:
        extent: index into the manifest's extents.
        offset: where its first range starts in the extent, in bytes, a multiple of 256.
        nbytes: its length, with what lies between the ranges.
        fill_slot: the owner's slot it is filled into first, or IN_PLACE.
        slot: the slot it is received into, by ranks that do not map it, or IN_PLACE when all of them do.
        pieces: what it holds, ascending.
        receiver_set: index into the plan's receiver sets: the sinks that need it.
        gathered: its ranges, ascending, where it has several.
    """

    extent: int
    offset: int
    nbytes: int
    fill_slot: int
    slot: int
    pieces: tuple[Piece, ...]
    receiver_set: int = 0
    gathered: tuple[ExtentRange, ...] = ()

    @property
    def ranges(self) -> tuple[ExtentRange, ...]:
        """The ranges that it is made of; most buckets have one."""
        return self.gathered or (ExtentRange(self.offset, 0, self.nbytes),)

    @property
    def first(self) -> tuple[int, int]:
        """The tensor of its first piece, and where in it that starts. A sink is sent no other bucket with the same."""
        return self.pieces[0].tensor, self.pieces[0].tensor_offset

    @property
    def payload(self) -> int:
        """Bytes of tensors in it, without what lies between them."""
        return sum(piece.nbytes for piece in self.pieces)


class RingUse(enum.StrEnum):
    """What a ring of slots is for."""

    FILL = "fill"
    RECEIVE = "receive"


class Ring(msgspec.Struct, frozen=True, array_like=True):
    """A ring is the slots that one rank sets aside for one use.

    Attributes:
        rank: whose memory it is.
        use: for filling its own buckets, or for receiving.
        depth: number of slots.
        slot_bytes: size of each.
    """

    rank: int
    use: RingUse
    depth: int
    slot_bytes: int

    @property
    def nbytes(self) -> int:
        return self.depth * self.slot_bytes


class Plan(msgspec.Struct, frozen=True, dict=True):
    """A plan says everything that an update will do, before it does any of it.

    Attributes:
        manifest: what is moved.
        topology: between whom.
        routes, hops, buckets, stages, rings: how.
        receiver_sets: sets of sinks, ascending each; every bucket goes to one of them.
        notes: what the planner wants a person to know: why this transport, and what memory made it give up.
        prediction: how long it is expected to take.
        others: the candidates that notes do not name: how long each would take, or why it cannot be.
    """

    manifest: Manifest
    topology: Topology
    routes: tuple[Route, ...]
    hops: tuple[Hop, ...]
    buckets: tuple[Bucket, ...]
    stages: Stages
    rings: tuple[Ring, ...]
    receiver_sets: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]
    prediction: Prediction = NOTHING_MOVES
    others: tuple[str, ...] = ()

    @no_collections()
    def encode(self) -> bytes:
        """Encode the plan: as msgpack, or in columns where so many are to get so much that it pays to make them."""
        plain = _encoder.encode(self)
        if len(plain) * len(self.topology.participants) <= MOST_PLAIN:
            return PLAIN + plain
        return COLUMNS + encode(msgspec.msgpack.decode(plain))

    @staticmethod
    @no_collections()
    def decode(data: bytes) -> Plan:
        """Decode a plan.

        Raises:
            msgspec.DecodeError: the bytes are not a plan.
        """
        form, rest = data[:1], data[1:]
        try:
            if form == PLAIN:
                return _decoder.decode(rest)
            if form == COLUMNS:
                return msgspec.convert(decode(rest), prepared(Plan))
        except PlanError as error:
            raise msgspec.DecodeError(str(error)) from error
        raise msgspec.DecodeError("the bytes are in no form that plans travel in")

    @cached_property
    def shape(self) -> str:
        """SHA-256, in hexadecimal, of the plan without the version's name: equal for versions of one model."""
        nameless = msgspec.structs.replace(self, manifest=msgspec.structs.replace(self.manifest, version=""))
        return hashlib.sha256(_encoder.encode(nameless)).hexdigest()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shape and version, in hexadecimal; what participants compare."""
        return hashlib.sha256(f"{self.shape} {self.manifest.version}".encode()).hexdigest()

    def for_version(self, version: str) -> Plan:
        """The same plan for a version of another name."""
        if version == self.manifest.version:
            return self
        renamed = msgspec.structs.replace(self, manifest=msgspec.structs.replace(self.manifest, version=version))
        vars(renamed)["shape"] = self.shape
        vars(renamed)["reads"] = self.reads
        vars(renamed)["specs"] = self.specs
        vars(renamed)["nbytes"] = self.nbytes
        return renamed

    @cached_property
    def nbytes(self) -> int:
        """Bytes to be moved, as of :attr:`Manifest.nbytes`."""
        return self.manifest.nbytes

    @cached_property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Those of every tensor of the version."""
        return tuple(self.manifest.specs.values())

    @property
    def moves_shares(self) -> bool:
        """Whether sinks are sent what they need, and not everything."""
        return self.receiver_sets != (self.topology.sinks,)

    @cached_property
    def mapping(self) -> Sequence[frozenset[int]]:
        """For each bucket the ranks that see it in the memory of another."""
        by_hop = [
            frozenset(rank for leg in hop.legs if self.routes[leg.route].maps_memory for rank in leg.receivers)
            for hop in self.hops
        ]
        by_pattern = [
            frozenset[int]().union(*(by_hop[stage.hop] for stage in pattern if stage.kind is StageKind.TRANSFER))
            for pattern in self.stages.patterns
        ]
        found: list[frozenset[int]] = [frozenset()] * len(self.buckets)
        for block in self.stages.blocks:
            ranks, known = by_pattern[block.pattern], found[block.bucket]
            found[block.bucket] = known | ranks if known else ranks
        return found

    @cached_property
    def reads(self) -> SinkReads:
        """What sinks read of the buckets that they map."""
        return SinkReads(self)

    @property
    def bytes_to(self) -> dict[int, int]:
        """How many bytes of tensors every sink is sent, or reads of what it maps."""
        return self.reads.bytes_to

    @property
    def received(self) -> dict[tuple[str, bool], int]:
        """How many bytes of buckets come to members, by transport, and by whether they come from another host."""
        hosts = [participant.host for participant in self.topology.participants]
        times: list[Counter[tuple[str, bool]]] = []
        for pattern in self.stages.patterns:
            legs = (leg for stage in pattern if stage.kind is StageKind.TRANSFER for leg in self.hops[stage.hop].legs)
            times.append(
                Counter(
                    (self.routes[leg.route].transport, hosts[rank] != hosts[leg.sender])
                    for leg in legs
                    for rank in leg.receivers
                )
            )
        found = Counter[tuple[str, bool]]()
        for block in self.stages.blocks:
            nbytes = self.buckets[block.bucket].nbytes
            for way, count in times[block.pattern].items():
                found[way] += count * nbytes
        return dict(found)

    def places(self, piece: Piece) -> Iterator[PlacedBytes]:
        """Where bytes of a piece lie in their tensor, and in the bucket."""
        tensor, at = self.manifest.tensors[piece.tensor], piece.bucket_offset
        number = tensor.start + piece.tensor_offset
        order = self._orders.get(tensor.spec.name)
        if order is None:
            yield PlacedBytes(tensor.spec, number, at, piece.nbytes)
            return
        for start, nbytes, runs, stride in order.places(number, piece.nbytes):
            yield PlacedBytes(tensor.spec, start, at, nbytes, runs, stride)
            at += nbytes * runs

    @cached_property
    def _orders(self) -> dict[str, BlockOrder]:
        return {order.name: order for order in self.manifest.ordered}

    def lies_apart(self, bucket: Bucket) -> bool:
        """Whether its tensors lie apart where it is read, so that each piece is a run of memory."""
        return bucket.fill_slot == IN_PLACE and self.manifest.extents[bucket.extent].kind in APART

    def owner(self, bucket: Bucket) -> int:
        """The source rank whose memory the bucket comes from."""
        return self.manifest.extents[bucket.extent].owner

    def ring(self, rank: int, use: RingUse) -> Ring | None:
        """That rank's ring for that use, if it has one."""
        return next((ring for ring in self.rings if ring.rank == rank and ring.use is use), None)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Plan)
