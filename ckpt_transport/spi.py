"""All that authors of transports, engines and quantizers import, beside what :mod:`ckpt_transport` exports to users.

========================= ==========================================================================================
who writes                begins with
========================= ==========================================================================================
a transport               :class:`Transport`, and the base class of its family: :class:`CollectiveEndpoint`,
                          :class:`MappedEndpoint`, :class:`MessageEndpoint` or :class:`OneSidedEndpoint`
the adapter of an engine  :class:`~ckpt_transport.Engine`; :class:`ModuleLoading` and :class:`RecordedLoader` for what
                          runs a loader; :class:`Share` for engines that take part of a version
one that drives engines   :class:`EngineFleet`, with a :class:`DrivenEngine` (over HTTP an :class:`HttpEngine`) and a
                          :class:`Driver`; or any :class:`Fleet`
one of sinks' handles     :data:`LocateHandles`, :class:`LocatedHandles`
a quantizer               :class:`Conversion`, :class:`ComputedExtent`, :class:`TensorSpec`
========================= ==========================================================================================

Modules below this one are private to the core. They may change without notice.
"""

from ckpt_transport import dtypes as dtypes
from ckpt_transport.checkpoint import Loan as Loan
from ckpt_transport.checkpoint.computed import CastTensors as CastTensors
from ckpt_transport.checkpoint.computed import ComputedExtent as ComputedExtent
from ckpt_transport.checkpoint.computed import Computing as Computing
from ckpt_transport.checkpoint.copier import describe as describe
from ckpt_transport.checkpoint.directory import INDEX as INDEX
from ckpt_transport.checkpoint.directory import from_directory as from_directory
from ckpt_transport.checkpoint.directory import specs_of as specs_of
from ckpt_transport.checkpoint.dtensors import is_dtensor as is_dtensor
from ckpt_transport.checkpoint.dtensors import local_part as local_part
from ckpt_transport.checkpoint.given import given_tensors as given_tensors
from ckpt_transport.checkpoint.pool import lay_out as lay_out
from ckpt_transport.checkpoint.scattered import ScatteredTensors as ScatteredTensors
from ckpt_transport.checkpoint.scattered import check_readable as check_readable
from ckpt_transport.checkpoint.strict_json import parse_object as parse_object
from ckpt_transport.checkpoint.watched import Watched as Watched
from ckpt_transport.control.addresses import any_port as any_port
from ckpt_transport.decoding import UNREADABLE as UNREADABLE
from ckpt_transport.decoding import prepared as prepared
from ckpt_transport.engine import KnownShadowNeeds as KnownShadowNeeds
from ckpt_transport.engine import MakeShadows as MakeShadows
from ckpt_transport.engine import ReleaseRange as ReleaseRange
from ckpt_transport.engine import ServedElements as ServedElements
from ckpt_transport.engine import ShadowNeeds as ShadowNeeds
from ckpt_transport.engine import StagedTensors as StagedTensors
from ckpt_transport.engine import StagingArea as StagingArea
from ckpt_transport.engine import digest_of_served as digest_of_served
from ckpt_transport.engine import on_device as on_device
from ckpt_transport.engine import place_of as place_of
from ckpt_transport.engine import release_of as release_of
from ckpt_transport.engine import why_not_apart as why_not_apart
from ckpt_transport.engine import why_not_contiguous as why_not_contiguous
from ckpt_transport.memory import CONTIGUOUS as CONTIGUOUS
from ckpt_transport.memory import Addresses as Addresses
from ckpt_transport.memory import Buffer as Buffer
from ckpt_transport.memory import CopyTable as CopyTable
from ckpt_transport.memory import DistantMemory as DistantMemory
from ckpt_transport.memory import DoubleBuffer as DoubleBuffer
from ckpt_transport.memory import ElementCopy as ElementCopy
from ckpt_transport.memory import Fence as Fence
from ckpt_transport.memory import GpuAllocation as GpuAllocation
from ckpt_transport.memory import HostRanges as HostRanges
from ckpt_transport.memory import Landing as Landing
from ckpt_transport.memory import Launch as Launch
from ckpt_transport.memory import Lendable as Lendable
from ckpt_transport.memory import MappedPages as MappedPages
from ckpt_transport.memory import MemoryKind as MemoryKind
from ckpt_transport.memory import MemoryRun as MemoryRun
from ckpt_transport.memory import OtherProcess as OtherProcess
from ckpt_transport.memory import PageRange as PageRange
from ckpt_transport.memory import RunPlace as RunPlace
from ckpt_transport.memory import Runs as Runs
from ckpt_transport.memory import RunTable as RunTable
from ckpt_transport.memory import Segment as Segment
from ckpt_transport.memory import SegmentName as SegmentName
from ckpt_transport.memory import StridedBytes as StridedBytes
from ckpt_transport.memory import addresses_of as addresses_of
from ckpt_transport.memory import allocations_of as allocations_of
from ckpt_transport.memory import copy_bytes as copy_bytes
from ckpt_transport.memory import copy_each as copy_each
from ckpt_transport.memory import device_of as device_of
from ckpt_transport.memory import drain as drain
from ckpt_transport.memory import fence as fence
from ckpt_transport.memory import fence_on as fence_on
from ckpt_transport.memory import find_allocations as find_allocations
from ckpt_transport.memory import free_on as free_on
from ckpt_transport.memory import has_copy_tables as has_copy_tables
from ckpt_transport.memory import let_others_read as let_others_read
from ckpt_transport.memory import let_read as let_read
from ckpt_transport.memory import map_pages as map_pages
from ckpt_transport.memory import may_have_devices as may_have_devices
from ckpt_transport.memory import not_plain as not_plain
from ckpt_transport.memory import page_ranges as page_ranges
from ckpt_transport.memory import page_server as page_server
from ckpt_transport.memory import places_of as places_of
from ckpt_transport.memory import reads_in_place as reads_in_place
from ckpt_transport.memory import starts_of as starts_of
from ckpt_transport.memory import sweep_leftovers as sweep_leftovers
from ckpt_transport.memory import this_process as this_process
from ckpt_transport.memory import uninterrupted as uninterrupted
from ckpt_transport.memory import unwritable as unwritable
from ckpt_transport.memory import use_device as use_device
from ckpt_transport.memory import use_huge_pages as use_huge_pages
from ckpt_transport.memory import why_not_plain as why_not_plain
from ckpt_transport.memory.segment import SHM as SHM
from ckpt_transport.paths import without_nul as without_nul
from ckpt_transport.planning import Conversion as Conversion
from ckpt_transport.planning import PlacedTensor as PlacedTensor
from ckpt_transport.planning import Share as Share
from ckpt_transport.planning import StagingPlace as StagingPlace
from ckpt_transport.planning import TensorSpec as TensorSpec
from ckpt_transport.planning import WholeModule as WholeModule
from ckpt_transport.planning.loader_memory import layer_of as layer_of
from ckpt_transport.planning.values.alignment import ALIGNMENT as ALIGNMENT
from ckpt_transport.planning.values.alignment import align_up as align_up
from ckpt_transport.replay import BucketCopyPlan as BucketCopyPlan
from ckpt_transport.replay import Fingerprint as Fingerprint
from ckpt_transport.replay import LikenessRecorder as LikenessRecorder
from ckpt_transport.replay import Loader as Loader
from ckpt_transport.replay import LoadPass as LoadPass
from ckpt_transport.replay import ModuleLoading as ModuleLoading
from ckpt_transport.replay import Owner as Owner
from ckpt_transport.replay import OwnerKind as OwnerKind
from ckpt_transport.replay import RecordedLoader as RecordedLoader
from ckpt_transport.replay import RecordedLoading as RecordedLoading
from ckpt_transport.replay import Recording as Recording
from ckpt_transport.replay import Rehearsal as Rehearsal
from ckpt_transport.replay import Replay as Replay
from ckpt_transport.replay import ReplayedTensors as ReplayedTensors
from ckpt_transport.replay import SeenByPassesError as SeenByPassesError
from ckpt_transport.replay import TensorAssembler as TensorAssembler
from ckpt_transport.replay import TensorSnapshot as TensorSnapshot
from ckpt_transport.replay import by_loader_in_words as by_loader_in_words
from ckpt_transport.replay import fingerprint as fingerprint
from ckpt_transport.replay import inverted_copy as inverted_copy
from ckpt_transport.replay import is_replayed_as_loaded as is_replayed_as_loaded
from ckpt_transport.replay import named_tensors as named_tensors
from ckpt_transport.replay import of_targets as of_targets
from ckpt_transport.replay import record as record
from ckpt_transport.replay import refuse_unwritable as refuse_unwritable
from ckpt_transport.replay import required_bytes as required_bytes
from ckpt_transport.service.call_guard import CallGuard as CallGuard
from ckpt_transport.service.claims import Claims as Claims
from ckpt_transport.service.claims import EngineClaim as EngineClaim
from ckpt_transport.service.endpoints import client_of as client_of
from ckpt_transport.service.endpoints import is_loopback as is_loopback
from ckpt_transport.service.endpoints import proxy_for as proxy_for
from ckpt_transport.service.fleet import NO_PAUSE as NO_PAUSE
from ckpt_transport.service.fleet import DrivenEngine as DrivenEngine
from ckpt_transport.service.fleet import Driver as Driver
from ckpt_transport.service.fleet import EngineFleet as EngineFleet
from ckpt_transport.service.fleet import Fleet as Fleet
from ckpt_transport.service.fleet import HttpEngine as HttpEngine
from ckpt_transport.service.fleet import NoRouteError as NoRouteError
from ckpt_transport.service.fleet import RollsBack as RollsBack
from ckpt_transport.service.fleet import Updates as Updates
from ckpt_transport.service.listening import listen as listen
from ckpt_transport.service.listening import warm_up as warm_up
from ckpt_transport.service.previous import previous_version as previous_version
from ckpt_transport.service.questions import Here as Here
from ckpt_transport.service.sink_handles import LocatedHandles as LocatedHandles
from ckpt_transport.service.sink_handles import LocateHandles as LocateHandles
from ckpt_transport.transports import Calls as Calls
from ckpt_transport.transports import CollectiveEndpoint as CollectiveEndpoint
from ckpt_transport.transports import MappedEndpoint as MappedEndpoint
from ckpt_transport.transports import MessageEndpoint as MessageEndpoint
from ckpt_transport.transports import OneSidedEndpoint as OneSidedEndpoint
from ckpt_transport.transports import Poll as Poll
from ckpt_transport.transports import ReadSpan as ReadSpan
from ckpt_transport.transports.interface import API_VERSION as API_VERSION
from ckpt_transport.transports.interface import Availability as Availability
from ckpt_transport.transports.interface import Control as Control
from ckpt_transport.transports.interface import Descriptor as Descriptor
from ckpt_transport.transports.interface import Endpoint as Endpoint
from ckpt_transport.transports.interface import FanOut as FanOut
from ckpt_transport.transports.interface import Group as Group
from ckpt_transport.transports.interface import NoOptions as NoOptions
from ckpt_transport.transports.interface import Reach as Reach
from ckpt_transport.transports.interface import Span as Span
from ckpt_transport.transports.interface import Traits as Traits
from ckpt_transport.transports.interface import Transfer as Transfer
from ckpt_transport.transports.interface import Transport as Transport
from ckpt_transport.transports.native import native_module as native_module
from ckpt_transport.transports.operations import Completion as Completion
from ckpt_transport.transports.operations import MemoryRegion as MemoryRegion
from ckpt_transport.transports.operations import Receipt as Receipt
from ckpt_transport.transports.rdma.bandwidth import expected_bandwidth as expected_bandwidth
from ckpt_transport.transports.rdma.devices import Locality as Locality
from ckpt_transport.transports.rdma.devices import RdmaDevice as RdmaDevice
from ckpt_transport.transports.rdma.devices import locality_of_cpus as locality_of_cpus
from ckpt_transport.transports.rdma.devices import locality_of_pci as locality_of_pci
from ckpt_transport.transports.rdma.devices import nearest as nearest
from ckpt_transport.transports.rdma.devices import rdma_devices as rdma_devices
from ckpt_transport.transports.rdma.ucx import ucx_devices as ucx_devices
from ckpt_transport.update.host import host_of as host_of
from ckpt_transport.update.mailbox import open_mailbox as open_mailbox
from ckpt_transport.update.progress import Progress as Progress

__all__ = [name for name in dir() if not name.startswith("_")]
