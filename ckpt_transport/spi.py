"""All that authors of transports, engines and quantizers import, beside what :mod:`ckpt_transport` exports to users.

========================= ==========================================================================================
who writes                begins with
========================= ==========================================================================================
a transport               :class:`Transport`, and the base class of its family: :class:`CollectiveEndpoint`,
                          :class:`MappedEndpoint`, :class:`MessageEndpoint` or :class:`OneSidedEndpoint`
the adapter of an engine  :class:`~ckpt_transport.Engine`; :class:`ModuleLoading` and :class:`RecordedLoader` for what
                          runs a loader; :class:`Share` for engines that take part of a version
one that drives engines   :class:`Fleet`, :class:`Claims`
a quantizer               :class:`Conversion`, :class:`ScatteredTensors`, :class:`TensorSpec`
========================= ==========================================================================================

Modules below this one are private to the core. They may change without notice.
"""

from __future__ import annotations

from ckpt_transport import dtypes
from ckpt_transport.checkpoint import Loan
from ckpt_transport.checkpoint.copier import describe
from ckpt_transport.checkpoint.directory import INDEX, from_directory
from ckpt_transport.checkpoint.given import given_tensors
from ckpt_transport.checkpoint.pool import lay_out
from ckpt_transport.checkpoint.scattered import ScatteredTensors, check_readable
from ckpt_transport.checkpoint.strict_json import parse_object
from ckpt_transport.checkpoint.watched import Watched
from ckpt_transport.control.addresses import any_port
from ckpt_transport.memory import (
    CONTIGUOUS,
    Buffer,
    DoubleBuffer,
    Fence,
    Launch,
    MemoryKind,
    Segment,
    SegmentName,
    copy_bytes,
    copy_each,
    drain,
    fence,
    fence_on,
    may_have_devices,
    read_only,
    sweep_leftovers,
    unwritable,
    why_not_plain,
)
from ckpt_transport.memory.segment import SHM
from ckpt_transport.paths import without_nul
from ckpt_transport.planning import Conversion, PlacedTensor, Share, TensorSpec
from ckpt_transport.planning.loader_memory import layer_of
from ckpt_transport.planning.values.alignment import ALIGNMENT, align_up
from ckpt_transport.replay import (
    Loader,
    LoadPass,
    ModuleLoading,
    Owner,
    OwnerKind,
    RecordedLoader,
    RecordedLoading,
    Recording,
    Replay,
    TensorSnapshot,
    Written,
    by_loader_in_words,
    fingerprint,
    named_tensors,
    record,
    refuse_unwritable,
    required_bytes,
)
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.claims import Claims, EngineClaim
from ckpt_transport.service.endpoints import client_of, is_loopback, proxy_for
from ckpt_transport.service.fleet import Fleet, Updates
from ckpt_transport.service.questions import Here
from ckpt_transport.transports import (
    Calls,
    CollectiveEndpoint,
    MappedEndpoint,
    MessageEndpoint,
    OneSidedEndpoint,
    Poll,
    ReadSpan,
)
from ckpt_transport.transports.interface import (
    API_VERSION,
    Availability,
    Control,
    Descriptor,
    Endpoint,
    FanOut,
    Group,
    NoOptions,
    Reach,
    Span,
    Traits,
    Transfer,
    Transport,
)
from ckpt_transport.transports.native import native_module
from ckpt_transport.transports.operations import Completion, MemoryRegion, Receipt
from ckpt_transport.transports.rdma.bandwidth import expected_bandwidth
from ckpt_transport.transports.rdma.devices import (
    Locality,
    RdmaDevice,
    locality_of_cpus,
    locality_of_pci,
    nearest,
    rdma_devices,
)
from ckpt_transport.transports.rdma.ucx import ucx_devices
from ckpt_transport.update.host import host_name
from ckpt_transport.update.mailbox import open_mailbox
from ckpt_transport.update.progress import Progress

__all__ = [
    "ALIGNMENT",
    "API_VERSION",
    "CONTIGUOUS",
    "INDEX",
    "SHM",
    "Availability",
    "Buffer",
    "CallGuard",
    "Calls",
    "Claims",
    "CollectiveEndpoint",
    "Completion",
    "Control",
    "Conversion",
    "Descriptor",
    "DoubleBuffer",
    "Endpoint",
    "EngineClaim",
    "FanOut",
    "Fence",
    "Fleet",
    "Group",
    "Here",
    "Launch",
    "LoadPass",
    "Loader",
    "Loan",
    "Locality",
    "MappedEndpoint",
    "MemoryKind",
    "MemoryRegion",
    "MessageEndpoint",
    "ModuleLoading",
    "NoOptions",
    "OneSidedEndpoint",
    "Owner",
    "OwnerKind",
    "PlacedTensor",
    "Poll",
    "Progress",
    "RdmaDevice",
    "Reach",
    "ReadSpan",
    "Receipt",
    "RecordedLoader",
    "RecordedLoading",
    "Recording",
    "Replay",
    "ScatteredTensors",
    "Segment",
    "SegmentName",
    "Share",
    "Span",
    "TensorSnapshot",
    "TensorSpec",
    "Traits",
    "Transfer",
    "Transport",
    "Updates",
    "Watched",
    "Written",
    "align_up",
    "any_port",
    "by_loader_in_words",
    "check_readable",
    "client_of",
    "copy_bytes",
    "copy_each",
    "describe",
    "drain",
    "dtypes",
    "expected_bandwidth",
    "fence",
    "fence_on",
    "fingerprint",
    "from_directory",
    "given_tensors",
    "host_name",
    "is_loopback",
    "lay_out",
    "layer_of",
    "locality_of_cpus",
    "locality_of_pci",
    "may_have_devices",
    "named_tensors",
    "native_module",
    "nearest",
    "open_mailbox",
    "parse_object",
    "proxy_for",
    "rdma_devices",
    "read_only",
    "record",
    "refuse_unwritable",
    "required_bytes",
    "sweep_leftovers",
    "ucx_devices",
    "unwritable",
    "why_not_plain",
    "without_nul",
]
