"""Memory of a GPU can be mapped by other processes where CUDA's allocator can export it.

Source: CUDA Driver API, "Unified Addressing" (cuPointerGetAttribute) and "Memory Management" (cuMemGetAddressRange).
What cudaMalloc has returned can be exported, as a whole. What is put together of pages, as by torch's
``expandable_segments``, or comes from a memory pool, cannot be exported that way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import torch

from ckpt_transport.errors import RegistrationError
from ckpt_transport.memory.cuda_bindings import cuda_bindings


class GpuAllocation(NamedTuple):
    """A run of bytes that cudaMalloc has returned, and in which tensors lie.

    Attributes:
        address: where it starts in this process.
        nbytes: its size.
        number: no other allocation of this process ever has the same.
    """

    address: int
    nbytes: int
    number: int


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
            if address + nbytes > end:
                found.append(_allocation_at(address))
                end = found[-1].address + found[-1].nbytes
                if address + nbytes > end:
                    raise RegistrationError("a tensor lies in several allocations of CUDA, as of expandable_segments")
    return found


def allocations_of(tensors: Iterable[torch.Tensor]) -> list[GpuAllocation]:
    """As :func:`find_allocations`, for contiguous tensors of one GPU."""
    filled = [tensor for tensor in tensors if tensor.numel()]
    return find_allocations({tensor.device for tensor in filled}, [(each.data_ptr(), each.nbytes) for each in filled])


def are_there(allocations: Iterable[GpuAllocation]) -> bool:
    """Whether none of these was freed, whatever has come to its address."""
    try:
        return all(_number_at(allocation.address) == allocation.number for allocation in allocations)
    except RegistrationError:
        return False


def _allocation_at(address: int) -> GpuAllocation:
    kinds = cuda_bindings("driver").CUpointer_attribute
    if not _call("cuPointerGetAttribute", kinds.CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, address):
        raise RegistrationError(
            "CUDA cannot export the memory that they lie in; leave expandable_segments out of PYTORCH_CUDA_ALLOC_CONF"
        )
    base, nbytes = _call("cuMemGetAddressRange", address)
    return GpuAllocation(int(base), int(nbytes), _number_at(address))


def _number_at(address: int) -> int:
    kinds = cuda_bindings("driver").CUpointer_attribute
    return int(_call("cuPointerGetAttribute", kinds.CU_POINTER_ATTRIBUTE_BUFFER_ID, address))


def _call(name: str, *arguments: Any) -> Any:
    driver = cuda_bindings("driver")
    status, *results = getattr(driver, name)(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RegistrationError(f"{name}: {status.name}")
    return results[0] if len(results) == 1 else results
