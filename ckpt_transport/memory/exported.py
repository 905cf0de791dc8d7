"""Memory of a GPU can be mapped by other processes where CUDA's allocator can export it.

Source: CUDA Driver API, "Unified Addressing" (cuPointerGetAttribute), "Memory Management" (cuMemGetAddressRange) and
"Virtual Memory Management" (cuMemRetainAllocationHandle). What cudaMalloc has returned can be exported, as a whole.
Torch's ``expandable_segments`` put ranges together of many allocations, each of which can be exported as an open file.
What comes from a memory pool cannot be exported either way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch

from ckpt_transport.errors import RegistrationError
from ckpt_transport.memory.cuda_bindings import call_driver, cuda_bindings


class GpuAllocation(NamedTuple):
    """A run of bytes that CUDA has allocated as one, and in which tensors lie.

    Attributes:
        address: where it starts in this process.
        nbytes: its size.
        number: no other allocation of this process ever has the same.
        in_pages: it is a part of a range that was put together, and is exported as an open file.
    """

    address: int
    nbytes: int
    number: int
    in_pages: bool = False

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.nbytes


def why_not_exported(tensors: Iterable[torch.Tensor]) -> str:
    """Why other processes cannot map these tensors, which are contiguous, in words; empty where they can."""
    filled = [tensor for tensor in tensors if tensor.numel()]
    try:
        find_allocations({tensor.device for tensor in filled}, [(each.data_ptr(), each.nbytes) for each in filled])
    except RegistrationError as error:
        return str(error)
    return ""


def find_allocations(devices: Collection[torch.device], places: Iterable[tuple[int, int]]) -> list[GpuAllocation]:
    """Find the allocations that others can map to see memory of these devices, ascending; many tensors share one.

    Args:
        devices: on which anything lies.
        places: the address of each piece of memory, and its bytes: more than none.

    Raises:
        RegistrationError: others cannot map it; says why.
    """
    if not devices or any(device.type != "cuda" for device in devices):
        raise RegistrationError("they do not lie on a GPU")
    if len(devices) > 1:
        raise RegistrationError(f"they lie on {len(devices)} GPUs")
    (device,) = devices
    found: list[GpuAllocation] = []
    end = 0
    with torch.cuda.device(device):  # cuMemGetAddressRange finds what belongs to the current context, and no other
        for address, nbytes in sorted(places):
            while address + nbytes > end:
                found.append(allocation_at(max(address, end)))
                end = found[-1].end
                if address + nbytes > end and not found[-1].in_pages:
                    raise RegistrationError("a tensor lies in several allocations of cudaMalloc")
    return found


def allocations_of(tensors: Iterable[torch.Tensor]) -> list[GpuAllocation]:
    """As :func:`find_allocations`, for contiguous tensors of one GPU."""
    filled = [tensor for tensor in tensors if tensor.numel()]
    return find_allocations({tensor.device for tensor in filled}, [(each.data_ptr(), each.nbytes) for each in filled])


def are_there(allocations: Iterable[GpuAllocation]) -> bool:
    """Whether none of these was freed, whatever has come to its address."""
    try:
        return all(number_at(allocation.address) == allocation.number for allocation in allocations)
    except RegistrationError:
        return False


def allocation_at(address: int) -> GpuAllocation:
    """The allocation in which an address of the current GPU lies.

    Raises:
        RegistrationError: CUDA cannot export it; says why.
    """
    driver = cuda_bindings("driver")
    kinds = driver.CUpointer_attribute
    in_pages = not call_driver("cuPointerGetAttribute", kinds.CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, address)
    if in_pages:
        _check_exportable_as_file(address)
    base, nbytes = map(int, call_driver("cuMemGetAddressRange", address))
    if not base <= address < base + nbytes:
        raise RegistrationError(f"CUDA says that {address:#x} lies between {base:#x} and {base + nbytes:#x}")
    return GpuAllocation(base, nbytes, number_at(address), in_pages)


def number_at(address: int) -> int:
    """The number of the allocation in which an address lies.

    Raises:
        RegistrationError: nothing is there.
    """
    kinds = cuda_bindings("driver").CUpointer_attribute
    return int(call_driver("cuPointerGetAttribute", kinds.CU_POINTER_ATTRIBUTE_BUFFER_ID, address))


def _check_exportable_as_file(address: int) -> None:
    """
    Raises:
        RegistrationError: its allocation was not made to be exported so, or belongs to a memory pool.
    """
    driver = cuda_bindings("driver")
    allowed = call_driver(
        "cuPointerGetAttribute", driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES, address
    )
    if not int(allowed) & int(driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR):
        raise RegistrationError(
            "CUDA cannot export the memory that they lie in; leave expandable_segments out of PYTORCH_CUDA_ALLOC_CONF"
        )
    call_driver("cuMemRelease", call_driver("cuMemRetainAllocationHandle", address))
