"""Given tensors of every kind, then those that cannot be written are found, with the reason and the cure."""

from __future__ import annotations

import ctypes
import mmap
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_transport.memory import read_only, unwritable

PAGES = 4 * mmap.PAGESIZE


class Wrapper(torch.Tensor):
    """A tensor that has no memory, as DTensor and the quantized ones of other libraries."""

    @staticmethod
    def __new__(cls, shape: tuple[int, ...]) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, shape)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} is not needed to see that it cannot be written")


class Plain(torch.nn.Parameter):
    """A parameter of a class of its own, as many engines have."""


def freed() -> torch.Tensor:
    tensor = torch.zeros(3)
    tensor.untyped_storage().resize_(0)
    return tensor


def protect(memory: mmap.mmap, nbytes: int, protection: int) -> None:
    """Change what may be done with the beginning of mapped memory."""
    address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), protection) == 0


WRITABLE = {
    "contiguous": torch.zeros(3, 4),
    "transposed": torch.zeros(3, 4).t(),
    "every second": torch.zeros(6, 4)[::2, ::2],
    "channels last": torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded along one": torch.zeros(4).expand(1, 4),
    "interleaved": torch.zeros(9).as_strided((3, 2), (2, 3)),
    "empty": torch.zeros(0, 4).expand(0, 4),
    "scalar": torch.zeros(()),
    "parameter": torch.nn.Parameter(torch.zeros(3)),
    "a class of its own": Plain(torch.zeros(3)),
}
UNWRITABLE = {
    "expanded": (torch.zeros(4).expand(3, 4), "share memory.*clone"),
    "expanded scalar": (torch.zeros(()).expand(3), "share memory"),
    "windows": (torch.zeros(9).as_strided((4, 3), (2, 1)), "share memory"),
    "meta": (torch.zeros(3, device="meta"), "meta device.*to_empty"),
    "freed": (freed(), "freed"),
    "lazy": (torch.nn.LazyLinear(3).weight, "call the module once"),
    "sparse": (torch.eye(3).to_sparse(), "torch.sparse_coo.*to_dense"),
    "wrapper": (Wrapper((3, 3)), "is a Wrapper, which has no memory of its own"),
}


def test_given_what_can_be_written_then_it_is_not_refused() -> None:
    assert unwritable(WRITABLE) == {}


@pytest.mark.parametrize("kind", UNWRITABLE)
def test_given_what_cannot_be_written_then_it_is_named_with_its_cure(kind: str) -> None:
    tensor, reason = UNWRITABLE[kind]
    found = unwritable({"one": torch.zeros(3), "other": tensor})
    assert list(found) == ["other"]
    assert re.search(reason, found["other"])


def test_given_a_file_that_is_mapped_read_only_then_it_is_refused_and_its_neighbours_are_not(tmp_path: Path) -> None:
    """Given an array of a file that may not be written, then the tensor of it is found before a write is tried."""
    (tmp_path / "weights").write_bytes(bytes(PAGES))
    mapped = np.memmap(tmp_path / "weights", np.float32, "r")
    copied = np.memmap(tmp_path / "weights", np.float32, "c")
    with warnings.catch_warnings(action="ignore"):
        found = unwritable(
            {
                "read-only": torch.from_numpy(mapped),
                "its end": torch.from_numpy(mapped)[-1:],
                "strided": torch.from_numpy(mapped)[::7],
                "on write": torch.from_numpy(copied),
                "ordinary": torch.zeros(PAGES),
            }
        )
    assert list(found) == ["read-only", "its end", "strided"]
    assert all("mapped read-only" in reason and "clone()" in reason for reason in found.values())


def test_given_memory_of_which_a_part_becomes_read_only_then_it_is_found() -> None:
    memory = mmap.mmap(-1, PAGES)
    tensor = torch.frombuffer(memory, dtype=torch.float32)
    below, above = tensor[: len(tensor) // 2], tensor[len(tensor) // 2 :]
    assert read_only({"below": below, "above": above}) == {}
    protect(memory, PAGES // 2, mmap.PROT_READ)
    try:
        assert list(read_only({"below": below, "above": above, "both": tensor})) == ["below", "both"]
    finally:
        protect(memory, PAGES, mmap.PROT_READ | mmap.PROT_WRITE)
    assert read_only({"both": tensor}) == {}
