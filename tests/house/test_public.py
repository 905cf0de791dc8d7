"""What each package exports, and that authors of plugins and adapters get along with that.

A change of these names is a change for users: it belongs into the changelog.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PUBLIC = ("ckpt_transport", "ckpt_transport.spi")
OUTSIDE = sorted(
    file
    for folder in ("plugins", "adapters", "examples/third_party_transport", "examples/engine_adapter")
    for file in (ROOT / folder).rglob("*.py")
)
EXPORTED = {
    "ckpt_transport": """
        AddressFile AnySink AwaitedJob BudgetError CheckpointError CkptTransportError Config ConfigError ControlError
        CoverageError DeltaRefusedError EndpointBrokenError EndpointClosedError Engine EngineError FleetReport Gate
        Holder HolderAddress JoinError Joiner LoadedBucket LoadedPiece Mapping MessageError ParameterServer
        PeerLostError
        PlanError PlanMismatchError PluginError RecordingError RegionBusyError RegistrationError Report
        ServedVersion SharedMemoryError Sink SinkHandle StagedJob StoreError StoredVersion StreamEngine SupersededError
        TaintedError
        TensorShard TransferError TransferTimeout TransportConflictError TransportError TransportNotFoundError
        TransportUnavailableError UnwritableError UpdateAbortedError UpdateError UsageError ask_version
        rules
    """,
    "ckpt_transport.spi": """
        ALIGNMENT API_VERSION Addresses AnyMapping Availability BucketCopyPlan Buffer CONTIGUOUS CallGuard Calls
        CastTensors
        Claims CollectiveEndpoint Completion ComputedExtent Computing Control Conversion CopyTable Descriptor
        DistantMemory DoubleBuffer DrivenEngine Driver ElementCopy Endpoint EngineClaim EngineFleet FanOut Fence
        Fingerprint Fleet GpuAllocation Group Here HostCopies HostRanges HttpEngine INDEX KnownShadowNeeds Landing
        Launch Lendable LikenessRecorder LoadPass Loader Loan Locality LocateHandles LocatedHandles MakeShadows
        MappedEndpoint MappedPages MemoryKind MemoryRegion MemoryRun MessageEndpoint ModuleLoading NO_PAUSE NoOptions
        NoRouteError OneSidedEndpoint OtherProcess Owner OwnerKind PageRange PlacedBytes PlacedTensor Poll Progress
        Publishes RdmaDevice Reach ReadSpan Receipt RecordedLoader RecordedLoading Recording Rehearsal ReleaseRange
        Replay ReplayedTensors RollsBack RunPlace RunTable Runs SHM ScatteredTensors Scratch SeenByPassesError Segment
        SegmentName ServedElements ShadowNeeds Share Span StagedTensors StagesVersions
        StagingArea StagingPlace StridedBytes
        TensorAssembler TensorPairs TensorSnapshot TensorSpec Tensors Traits Transfer Transport UNREADABLE Updates
        Watched WholeModule
        WritesApart addresses_of align_up allocations_of any_port by_loader_in_words check_readable client_of
        copy_bytes copy_each copy_runs copy_views describe device_of digest_of_served drain dtypes expected_bandwidth
        fence fence_on find_allocations fingerprint free_on from_directory given_tensors has_copy_tables host_of
        inverted_copy is_dtensor is_loopback is_replayed_as_loaded lay_out layer_of let_others_read let_read listen
        local_part locality_of_cpus locality_of_pci map_pages may_have_devices named_tensors native_module nearest
        not_plain of_targets on_device open_mailbox page_ranges page_server parse_object place_of places_of prepared
        previous_version proxy_for rdma_devices reads_in_place record refuse_unwritable release_of required_bytes
        specs_of starts_of sweep_leftovers this_process ucx_devices uninterrupted unwritable use_device use_huge_pages
        warm_up why_not_apart why_not_contiguous why_not_plain without_nul
    """,
    "ckpt_transport_fp8": """
        Target quantized read_target
    """,
    "ckpt_transport_sglang": """
        SglangFleet
    """,
    "ckpt_transport_ray": """
        LocatedActors locate node_address
    """,
    "ckpt_transport_torch": """
        Attachment Loader LoaderEngine ModuleEngine TorchEngine attach attach_engine
    """,
    "ckpt_transport_transformers": """
        TransformersEngine attach
    """,
    "ckpt_transport_verl": "",
    "ckpt_transport_vllm": """
        Adapter ServedAs VllmFleet VllmHandle WorkerExtension
    """,
    "ckpt_transport_cuda_ipc": """
        CudaIpcTransport
    """,
    "ckpt_transport_gloo": """
        GlooTransport
    """,
    "ckpt_transport_mooncake": """
        MooncakeOptions MooncakeTransport
    """,
    "ckpt_transport_nccl": """
        NcclTransport
    """,
    "ckpt_transport_nixl": """
        NixlTransport
    """,
    "ckpt_transport_shm": """
        ShmTransport
    """,
    "ckpt_transport_ucx": """
        UcxTransport
    """,
}


NEEDS = {"ckpt_transport_ray": "ray"}
"""What a package cannot be imported without, where that is no dependency of the tests."""


@pytest.mark.parametrize("package", EXPORTED)
def test_given_a_package_then_it_exports_these_names_and_each_is_there(package: str) -> None:
    if find_spec(NEEDS.get(package, package)) is None:
        pytest.skip(f"{NEEDS[package]} is not installed")
    module = importlib.import_module(package)
    assert sorted(module.__all__) == EXPORTED[package].split()
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_given_all_packages_then_none_is_left_out_here() -> None:
    packages = {file.parent.name for kind in ("plugins", "adapters") for file in (ROOT / kind).glob("*/__init__.py")}
    assert packages | set(PUBLIC) == set(EXPORTED)


def test_given_both_public_modules_then_no_name_is_in_both() -> None:
    users, authors = (set(EXPORTED[package].split()) for package in PUBLIC)
    assert not users & authors


def test_given_the_errors_then_users_find_each_in_the_package() -> None:
    errors = importlib.import_module("ckpt_transport.errors")
    names = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert names <= set(EXPORTED["ckpt_transport"].split())


def imports_of_the_core(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.split(".")[0] == "ckpt_transport")


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: str(file.relative_to(ROOT)))
def test_given_a_plugin_or_an_adapter_then_it_imports_only_what_is_public(file: Path) -> None:
    assert set(imports_of_the_core(file)) <= set(PUBLIC)
