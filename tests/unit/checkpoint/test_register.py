"""Registering versions from files and from tensors: what is in memory afterwards, and who is told."""

from __future__ import annotations

import gc
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ckpt_transport import dtypes
from ckpt_transport.checkpoint import Store
from ckpt_transport.checkpoint.checkpoint import CheckpointFile, FileStamp, from_files
from ckpt_transport.checkpoint.header import TensorEntry
from ckpt_transport.checkpoint.reader import CHUNK_NBYTES, Placement, cut_chunks, read
from ckpt_transport.errors import CheckpointError, ConfigError, StoreError
from ckpt_transport.memory import Buffer, MemoryKind
from ckpt_transport.planning import TensorSpec, spread
from tests.unit.safetensors_files import entry, every_dtype, held, oracle, raw, segments, write, write_sparse

both_kinds = pytest.mark.parametrize("kind", [MemoryKind.SHARED, MemoryKind.PRIVATE])


@both_kinds
def test_given_files_then_the_pool_holds_the_bytes_the_library_reads(tmp_path: Path, kind: MemoryKind) -> None:
    header, data = every_dtype()
    paths = [
        write(tmp_path / "1.safetensors", header, data),
        write(
            tmp_path / "2.safetensors",
            {"scalar": entry("F64", [], 0, 8), "none": entry("I32", [0, 4], 8, 8)},
            b"8bytes..",
        ),
    ]
    save_file({"large": torch.randn(3, CHUNK_NBYTES // 4 + 5), "small": torch.arange(5)}, tmp_path / "3.safetensors")
    paths.append(tmp_path / "3.safetensors")
    with Store(pool=kind) as store:
        stored = store.register("step-1", files=paths[::-1])
        assert held(stored) == oracle(*paths)
        (extent,) = stored.manifest.extents
        (buffer,) = stored.buffers
        assert (extent.owner, extent.kind, extent.nbytes) == (0, kind, buffer.nbytes)
        assert buffer.kind is kind
        assert buffer.nbytes % 256 == 0
        offsets = [tensor.offset for tensor in stored.manifest.tensors]
        assert offsets == sorted(offsets)
        assert all(offset % 256 == 0 for offset in offsets)
        assert [tensor.spec.name for tensor in stored.manifest.tensors[:2]] == ["of C64", "of F64"], "by file name"


@both_kinds
def test_given_only_empty_tensors_then_the_version_has_a_pool_all_the_same(tmp_path: Path, kind: MemoryKind) -> None:
    path = write(
        tmp_path / "model.safetensors", {"none": entry("BF16", [0], 0, 0), "nor this": entry("U8", [2, 0], 0, 0)}
    )
    with Store(pool=kind) as store:
        stored = store.register("step-1", directory=tmp_path)
        assert held(stored) == oracle(path)
        assert stored.buffers[0].nbytes == stored.manifest.extents[0].nbytes == 256


def test_given_several_ranks_then_together_they_hold_the_checkpoint_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path in paths:
        save_file({f"{path.stem}.{size}": torch.randn(size) for size in (10, 1000, 3000)}, path)
    stores = [Store(rank=rank, world_size=4, pool=MemoryKind.PRIVATE) for rank in range(4)]
    stored = [store.register("step-1", directory=tmp_path) for store in stores]
    assert held(*stored) == oracle(*paths)
    for rank, part in enumerate(stored):
        assert {extent.owner for extent in part.manifest.extents} == {rank}
    manifests = [part.manifest for part in stored]
    assert len(spread("step-1", manifests, {}, (), whole=False).tensors) == 9
    for store in stores:
        store.close()


def test_given_more_ranks_than_tensors_then_some_hold_nothing(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(8)}, tmp_path / "model.safetensors")
    parts = []
    for rank in range(3):
        with Store(rank=rank, world_size=3) as store:
            parts.append(store.register("step-1", directory=tmp_path).manifest)
    assert [len(part.extents) for part in parts] == [0, 1, 0]


@both_kinds
def test_given_tensors_then_they_are_copied_whatever_their_stride(kind: MemoryKind) -> None:
    shared = torch.arange(12, dtype=torch.int16).reshape(3, 4)
    packed = torch.randint(0, 256, (4, 6), dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    tensors = {
        "tied": shared,
        "tied too": shared,
        "transposed": shared.t(),
        "every other": torch.randn(9, dtype=torch.bfloat16)[::2],
        "expanded": torch.tensor([1.5]).expand(4),
        "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
        "trained": torch.nn.Parameter(torch.randn(3, 3)),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.empty(0, 3),
        "fp8": torch.randn(5).to(torch.float8_e4m3fn),
        "fp4": packed,
        "fp4 transposed": packed.t(),
    }
    with Store(rank=1, world_size=3, pool=kind) as store:
        stored = store.register("step-1", tensors=tensors)
        assert [tensor.spec.name for tensor in stored.manifest.tensors] == list(tensors)
        assert [extent.owner for extent in stored.manifest.extents] == [1]
        for place in stored.manifest.tensors:
            copy = dtypes.as_tensor(raw(stored, place.spec.name), place.spec.dtype, place.spec.shape)
            original = tensors[place.spec.name]
            assert place.offset % 256 == 0
            assert copy.dtype is original.dtype
            assert copy.shape == original.shape
            assert not copy.requires_grad
            if original.dtype.itemsize == 1:
                copy, original = copy.view(torch.uint8), original.view(torch.uint8)
            assert torch.equal(copy, original)
        shared.zero_()
        assert raw(stored, "tied").any(), "a version does not follow the tensor it was copied from"


@given(st.sampled_from(sorted(dtypes.TORCH)), st.lists(st.integers(0, 4), max_size=3), st.data())
def test_given_tensors_then_what_they_declare_fills_exactly_their_place(
    dtype: str, shape: list[int], data: st.DataObject
) -> None:
    if dtype == "F4" and not shape:
        shape = [2]
    count = torch.Size(shape).numel() * dtypes.TORCH[dtype].itemsize
    filling = data.draw(st.binary(min_size=count, max_size=count))
    flat = torch.tensor(list(filling), dtype=torch.uint8)
    tensor = flat.view(dtypes.TORCH[dtype]).view(shape) if count else torch.empty(shape, dtype=dtypes.TORCH[dtype])
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        stored = store.register("step-1", tensors={"a": tensor})
        if dtype != "BOOL":
            assert raw(stored, "a").tolist() == flat.tolist()
        assert stored.manifest.tensors[0].spec == TensorSpec("a", dtype, dtypes.shape_of(tensor))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        pytest.param({}, "mapping of tensors is empty", id="none"),
        pytest.param({"a": torch.eye(2).to_sparse()}, "tensor 'a' is torch.sparse_coo", id="sparse"),
        pytest.param({"a": torch.empty(2, device="meta")}, "tensor 'a' is on the meta device", id="meta"),
        pytest.param({"a": torch.zeros(2, dtype=torch.complex128)}, "tensor 'a': safetensors has no name", id="dtype"),
    ],
)
def test_given_tensors_that_cannot_be_stored_then_they_are_refused(
    tensors: dict[str, torch.Tensor], message: str
) -> None:
    with Store() as store:
        with pytest.raises(CheckpointError, match=message):
            store.register("step-1", tensors=tensors)
        assert not segments()


def test_given_a_registration_then_its_progress_starts_at_nothing_rises_and_ends_at_all(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "a.safetensors", {"a": 3 * CHUNK_NBYTES + 1, "b": 7})
    told: list[tuple[int, int]] = []
    total = 3 * CHUNK_NBYTES + 8
    with Store() as store:
        store.register("files", files=[path], progress=lambda done, of: told.append((done, of)))
        assert told[0] == (0, total)
        assert told[-1] == (total, total)
        assert told == sorted(told)
        assert len(told) == 5
        told.clear()
        store.register("tensors", tensors={"a": torch.zeros(5)}, progress=lambda done, of: told.append((done, of)))
        assert told == [(0, 20), (20, 20)]


def test_given_progress_that_raises_then_its_error_ends_the_registration(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "a.safetensors", {"a": 8 * CHUNK_NBYTES})

    def give_up(done: int, total: int) -> None:
        if done:
            raise BrokenPipeError("nobody listens")

    with Store() as store:
        with pytest.raises(BrokenPipeError, match="nobody listens"):
            store.register("step-1", files=[path], progress=give_up)
        assert not segments()
        store.register("step-1", files=[path])


def test_given_a_file_cut_short_while_it_is_read_then_the_error_names_file_and_tensor(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "a.safetensors", {"first": CHUNK_NBYTES, "second": CHUNK_NBYTES})
    (file,) = from_files([path])
    placements = [Placement(file, tensor, at * CHUNK_NBYTES) for at, tensor in enumerate(file.tensors)]
    pool = Buffer.private(2 * CHUNK_NBYTES)
    with (
        ThreadPoolExecutor(1, initializer=lambda: os.truncate(path, CHUNK_NBYTES + 1000)) as executor,
        pytest.raises(CheckpointError, match=r"a\.safetensors: tensor 'second' ends at byte 4195304: .* cut short"),
    ):
        read(placements, pool, executor, lambda nbytes: None)


def test_given_a_file_written_to_while_it_is_read_then_it_is_refused(tmp_path: Path) -> None:
    """Bytes of two versions must not end up in one."""
    path = write_sparse(tmp_path / "a.safetensors", {"a": CHUNK_NBYTES})
    os.utime(path, (0, 0))

    def write_to_it(done: int, total: int) -> None:
        if done:
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"x")

    with Store() as store:
        with pytest.raises(CheckpointError, match=r"a\.safetensors changed while it was registered"):
            store.register("step-1", files=[path], progress=write_to_it)
        assert not segments()


@given(st.lists(st.lists(st.integers(0, 2 * CHUNK_NBYTES), max_size=5), max_size=3), st.integers(0, 1))
def test_given_tensors_in_chunks_then_they_cover_every_byte_once_and_are_short(
    sizes: list[list[int]], skipped: int
) -> None:
    placements: list[Placement] = []
    offset = 0
    for number, of_file in enumerate(sizes):
        start = 100
        entries: list[TensorEntry] = []
        for size in of_file:
            entries.append(TensorEntry(TensorSpec("a", "U8", (size,)), start, size))
            start += size
        file = CheckpointFile(Path(str(number)), FileStamp(0, number, start, 0), tuple(entries))
        for tensor in entries[skipped:]:
            placements.append(Placement(file, tensor, offset))
            offset += tensor.nbytes
    expected = [(id(p.file), p.entry.offset, p.offset, p.entry.nbytes) for p in placements if p.entry.nbytes]
    merged: list[tuple[int, int, int, int]] = []
    for chunk in cut_chunks(placements):
        assert 0 < chunk.nbytes <= CHUNK_NBYTES
        assert chunk.nbytes == sum(nbytes for _, nbytes in chunk.targets)
        start = chunk.start
        for target, nbytes in chunk.targets:
            boundary = {(key, at) for key, at, _, _ in expected}
            if merged and (id(chunk.file), start) not in boundary:
                key, first, to, length = merged[-1]
                assert (first + length, to + length) == (start, target)
                merged[-1] = (key, first, to, length + nbytes)
            else:
                merged.append((id(chunk.file), start, target, nbytes))
            start += nbytes
    assert merged == expected


def test_given_thousands_of_small_tensors_then_all_arrive(tmp_path: Path) -> None:
    """More than one system call can scatter to."""
    path = tmp_path / "model.safetensors"
    save_file({f"{number}": torch.full((3,), number) for number in range(3000)}, path)
    with Store() as store:
        assert held(store.register("step-1", directory=tmp_path)) == oracle(path)


def test_given_a_taken_name_then_the_second_version_is_refused() -> None:
    with Store() as store:
        first = store.register("step-1", tensors={"a": torch.zeros(3)})
        with pytest.raises(StoreError, match="'step-1' is registered already"):
            store.register("step-1", tensors={"a": torch.ones(3)})
        assert store.get("step-1") is first


def test_given_an_unknown_name_then_the_error_lists_those_there_are() -> None:
    with Store() as store:
        with pytest.raises(StoreError, match="registered: none"):
            store.get("step-3")
        store.register("step-1", tensors={"a": torch.zeros(3)})
        store.register("step-2", tensors={"a": torch.zeros(3)})
        with pytest.raises(StoreError, match="no version 'step-3' is registered; registered: 'step-1', 'step-2'"):
            store.unregister("step-3")


def test_given_no_source_or_two_then_they_are_refused(tmp_path: Path) -> None:
    with Store() as store:
        with pytest.raises(StoreError, match="exactly one of"):
            store.register("step-1")
        with pytest.raises(StoreError, match="exactly one of"):
            store.register("step-1", directory=tmp_path, tensors={})


def test_given_arguments_out_of_range_then_no_store_is_made() -> None:
    with pytest.raises(ConfigError, match="rank is 2"):
        Store(rank=2, world_size=2)
    with pytest.raises(ConfigError, match="pool is 'cuda'"):
        Store(pool=MemoryKind.CUDA)
    with pytest.raises(ConfigError, match="threads is 0"):
        Store(threads=0)


def test_given_steps_of_one_training_run_then_their_arrangement_and_their_pool_are_made_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given steps of equal tensors, when one follows another, then only their bytes are copied."""
    brought_in: list[Buffer] = []
    populate = Buffer.populate

    def counted(buffer: Buffer, threads: Executor) -> None:
        brought_in.append(buffer)
        populate(buffer, threads)

    monkeypatch.setattr(Buffer, "populate", counted)
    with Store() as store:
        found = []
        for step in range(3):
            weights = {f"layers.{number}": torch.full((number, 7), step) for number in range(50)}
            stored = store.register("step", tensors=weights)
            assert all(torch.equal(stored.tensors()[name], tensor) for name, tensor in weights.items())
            found.append(stored.manifest.tensors)
            store.unregister("step")
        assert found[0] is found[1] is found[2]
        assert len(brought_in) == 1
        other = store.register("step", tensors={"layers.0": torch.zeros(0, 7), "layers.1": torch.zeros(2, 7)})
        assert [str(place.spec) for place in other.manifest.tensors] == [
            "layers.0 (F32 [0, 7])",
            "layers.1 (F32 [2, 7])",
        ]


def test_given_a_registration_that_fails_then_garbage_is_collected_as_before() -> None:
    def fail(done: int, total: int) -> None:
        assert not gc.isenabled()
        raise RuntimeError("enough")

    with Store() as store:
        with pytest.raises(RuntimeError, match="enough"):
            store.register("step", tensors={"a": torch.zeros(3)}, progress=fail)
        assert gc.isenabled()
