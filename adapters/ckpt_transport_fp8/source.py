"""Weights that become FP8 on their way: a version to lend, of which buckets are computed when they are filled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ckpt_transport import dtypes
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import Conversion, PlacedTensor, TensorSpec
from ckpt_transport.store import Loan, StoredVersion
from ckpt_transport.store.copier import describe
from ckpt_transport.store.loose import Loose
from ckpt_transport.store.pool import lay_out
from ckpt_transport_fp8.computed import Computed
from ckpt_transport_fp8.devices import choose, computed_on, largest
from ckpt_transport_fp8.numerics import factors_for, scales_for
from ckpt_transport_fp8.part import Part
from ckpt_transport_fp8.target import Target, Wanted, read_target


class Quantizing:
    """An extent that is laid out as a pool of the quantized tensors would be; a
    :class:`~ckpt_transport.memory.Backing`.

    Args:
        kept: what is sent as it is, scales included.
        computed: the rest.
    """

    kind = MemoryKind.LOOSE

    def __init__(self, kept: Loose, computed: Computed) -> None:
        self._kept, self._computed = kept, computed
        self.nbytes = kept.nbytes

    def fill(self, slot: torch.Tensor, offset: int) -> None:
        with self._computed.room_for(slot) as room:
            self._kept.fill(room, offset)
            self._computed.fill(room, offset)


@dataclass(frozen=True, slots=True)
class _Made:
    """One tensor of the extent: ``source`` as it is, or ``source`` times ``factors`` in another dtype."""

    spec: TensorSpec
    source: torch.Tensor
    how: str = ""
    factors: torch.Tensor | None = None
    group: tuple[int, int] = (1, 1)


def quantized(
    weights: Mapping[str, torch.Tensor] | StoredVersion, target: Target, device: torch.device | None = None
) -> Loan:
    """``weights`` as ``target`` wants them, to be given to :meth:`ckpt_transport.ParameterServer.lend`.

    Scales are computed here: one pass over the weights, before an engine stands still for them. Elements are computed
    bucket by bucket while the update runs, so nobody may change ``weights`` until the version is unregistered.

    Args:
        weights: this rank's tensors, contiguous, or a version that it has registered.
        target: what they are made for.
        device: where elements are computed; by default where the weights are, if that is a GPU, else on the current
            GPU, if this process has one, else on the CPU.

    Raises:
        PlanMismatchError: the target wants something else than these weights can become; names the tensor.
        CheckpointError: a tensor that is to be quantized holds NaN or infinity, or is not contiguous; names it.
    """
    tensors = weights.tensors() if isinstance(weights, StoredVersion) else weights
    if not tensors and isinstance(weights, StoredVersion):
        return Loan(None, ())
    specs = describe(tensors)
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise CheckpointError(f"tensor '{name}' is not contiguous; give tensor.contiguous()")
    for gpu in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(gpu).synchronize()
    wanted = [target.wants(spec, tensors.keys()) for spec in specs]
    device = choose(tensors.values()) if device is None else device
    made = _make([tensor.detach() for tensor in tensors.values()], specs, wanted)
    return _lay_out(made, device)


def _make(tensors: Sequence[torch.Tensor], specs: Sequence[TensorSpec], wanted: Sequence[Wanted]) -> list[_Made]:
    matrices = [
        (tensor, want.scheme.group(want.spec.shape))
        for tensor, want in zip(tensors, wanted, strict=True)
        if want.scheme is not None and tensor.numel()
    ]
    maxima = iter(largest([matrix for matrix, _ in matrices], [group for _, group in matrices]))
    made: list[_Made] = []
    for tensor, spec, want in zip(tensors, specs, wanted, strict=True):
        if want.scheme is None:
            how = "" if want.spec == spec else f"{want.spec.dtype} from {spec.dtype}"
            made.append(_Made(want.spec, tensor, how))
            continue
        assert want.scale is not None
        most = next(maxima) if tensor.numel() else torch.zeros(want.scheme.grid(want.spec.shape))
        if not most.isfinite().all():
            raise CheckpointError(f"tensor {spec} holds NaN or infinity, and cannot be quantized")
        scales = scales_for(most, want.scheme, dtypes.TORCH[want.scale.dtype])
        if not scales.isfinite().all():
            raise CheckpointError(f"tensor {spec} has scales too large for {want.scale.dtype}")
        how = f"{want.scheme}, from {spec.dtype}"
        group = want.scheme.group(want.spec.shape)
        made.append(_Made(want.spec, tensor, how, factors_for(scales), group))
        made.append(_Made(want.scale, scales.reshape(want.scale.shape), how))
    return made


def _lay_out(made: Sequence[_Made], device: torch.device) -> Loan:
    offsets, nbytes = lay_out(each.spec.nbytes for each in made)
    placed = [PlacedTensor(each.spec, 0, at, each.spec.nbytes) for each, at in zip(made, offsets, strict=True)]
    conversions: defaultdict[str, list[str]] = defaultdict(list)
    kept: list[tuple[torch.Tensor, int]] = []
    parts: list[Part] = []
    for each, offset in zip(made, offsets, strict=True):
        if each.how:
            conversions[each.how].append(each.spec.name)
        dtype = dtypes.TORCH[each.spec.dtype]
        if each.source.dtype == dtype:
            kept.append((each.source.reshape(-1).view(torch.uint8), offset))
        elif each.source.numel():
            matrix = each.source.reshape(-1, each.source.shape[-1] if each.source.dim() else 1)
            parts.append(Part(matrix, dtype, offset, each.factors, each.group))
    loose = Loose([raw for raw, _ in kept], [offset for _, offset in kept], nbytes)
    backing = Quantizing(loose, computed_on(device, parts))
    return Loan(backing, placed, [Conversion(how, tuple(names)) for how, names in conversions.items()])


def quantized_for(stored: StoredVersion, target: Path) -> Loan:
    """For the commands: :func:`quantized`, for a target that is read from ``target``."""
    return quantized(stored, read_target(target))
