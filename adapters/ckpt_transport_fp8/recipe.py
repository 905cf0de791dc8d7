"""A recipe says what becomes of weights, as far as their names, shapes, dtypes and devices decide it.

A training loop brings the same weights at every step, in new versions: the recipe is made for the first one and kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter, eq
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from ckpt_transport import CheckpointError
from ckpt_transport.spi import (
    CastTensors,
    ComputedExtent,
    Computing,
    Conversion,
    Loan,
    PlacedTensor,
    ScatteredTensors,
    TensorSpec,
    Watched,
    describe,
    dtypes,
    lay_out,
)
from ckpt_transport_fp8 import backend
from ckpt_transport_fp8.backend import Backend, ScaledElements
from ckpt_transport_fp8.computed_tensor import ComputedTensor
from ckpt_transport_fp8.scales import ScaleLayout, ScaleTensor
from ckpt_transport_fp8.target import Target, Wanted
from ckpt_transport_fp8.torch_backend import TorchBackend

MOST = 8
"""Recipes that are kept for a target, as long as it lives."""


class TensorSignature(NamedTuple):
    """All that decides, with its name, what becomes of a tensor."""

    dtype: torch.dtype
    shape: torch.Size
    device: torch.device
    layout: torch.layout


signature_of = attrgetter(*TensorSignature._fields)
"""Returns the signature of a tensor, as a plain tuple."""


class Recipe:
    """How a version is made of weights that have these signatures. A recipe holds no weights.

    Args:
        signatures: of the weights.
        specs: of the weights.
        wanted: what becomes of each.
        device: where that is computed.
    """

    def __init__(
        self,
        signatures: Sequence[TensorSignature],
        specs: Sequence[TensorSpec],
        wanted: Sequence[Wanted],
        device: torch.device,
    ) -> None:
        self._device = device
        made = [spec for want in wanted for spec in (want.spec, want.scale) if spec is not None]
        offsets, self._nbytes = lay_out(spec.nbytes for spec in made)
        self._placed = tuple(PlacedTensor(spec, 0, at, spec.nbytes) for spec, at in zip(made, offsets, strict=True))
        self._conversions = _conversions(specs, wanted)
        places = {spec.name: offset for spec, offset in zip(made, offsets, strict=True)}
        self._scales = ScaleLayout(
            [
                ScaleTensor(spec, want.scheme, want.scale, places[want.scale.name])
                for spec, want in zip(specs, wanted, strict=True)
                if want.scheme is not None and want.scale is not None
            ],
            device,
        )
        self._kept: list[tuple[int, int]] = []
        self._cast: list[tuple[int, int, torch.dtype]] = []
        self._narrowed: list[tuple[int, TensorSpec, torch.dtype]] = []
        computed: list[ComputedTensor] = []
        for number, (signature, want) in enumerate(zip(signatures, wanted, strict=True)):
            offset = places[want.spec.name]
            if signature.dtype == dtypes.TORCH[want.spec.dtype]:
                self._kept.append((number, offset))
            elif signature.shape.numel() and (scaled := _computed(number, signature, want, offset, self._scales)):
                computed.append(scaled)
            elif signature.shape.numel():
                self._cast.append((number, offset, dtypes.TORCH[want.spec.dtype]))
                if _reaches_less(want.spec.dtype, signature.dtype):
                    self._narrowed.append((number, specs[number], dtypes.TORCH[want.spec.dtype]))
        self._backends = _backends_on(device, computed)
        self.gpus = {signature.device for signature in signatures if signature.device.type == "cuda"}
        """Where weights lie."""

    def loan(self, tensors: Sequence[torch.Tensor], watched: Watched) -> Loan:
        """Return the version that is made of ``tensors``; its scales are complete when this returns.

        Args:
            tensors: contiguous, in the order of their signatures.
            watched: the same.

        Raises:
            CheckpointError: as :meth:`ckpt_transport_fp8.scales.ScaleLayout.scales_of`, or a weight without scales is
                too large for its new dtype; names it.
        """
        for number, spec, dtype in self._narrowed:
            if not tensors[number].to(dtype).isfinite().all():
                raise CheckpointError(
                    f"tensor {spec} has elements that are not finite in {dtypes.name_of(dtype)}, which the target "
                    "wants; look at the training run, or have the target in BF16"
                )
        computations = [each.bind(tensors) for each in self._backends]
        amax = torch.zeros(self._scales.groups, device=self._device)
        for computation in computations:
            computation.find_amax(amax)
        offsets = [offset for _, offset in self._kept]
        kept = ScatteredTensors.of(
            [tensors[number].detach() for number, _ in self._kept], offsets, self._nbytes, watched
        )
        scales = self._scales.scales_of(amax)  # here it waits for a GPU
        numbers, starts, to = zip(*self._cast, strict=True) if self._cast else ((), (), ())
        elements = [ScaledElements(each, scales.factors) for each in computations]
        computed: list[Computing] = [
            scales,
            *elements,
            CastTensors([tensors[number] for number in numbers], to, starts),
        ]
        return Loan(ComputedExtent(self._device, kept, computed), self._placed, list(self._conversions))


def recipe_for(tensors: Mapping[str, torch.Tensor], target: Target, device: torch.device | None) -> Recipe:
    """Return how that which ``target`` wants is made of ``tensors``.

    Args:
        tensors: the weights.
        target: what they are made for.
        device: where elements are computed; None chooses.

    Raises:
        CheckpointError: as :func:`~ckpt_transport.spi.describe`.
        PlanMismatchError: as :meth:`~ckpt_transport_fp8.target.Target.wants`.
    """
    names, recent = tuple(tensors), _recent.get(target, ())
    device = _chosen(tensor.device for tensor in tensors.values()) if device is None else _numbered(device)
    found = next((known for known in recent if known.fits(names, tensors, device)), None)
    if found is None:
        specs = describe(tensors)
        signatures = [TensorSignature(*signature_of(tensor)) for tensor in tensors.values()]
        wanted = [target.wants(spec, tensors.keys()) for spec in specs]
        found = _KnownRecipe(names, signatures, device, Recipe(signatures, specs, wanted, device))
    _recent[target] = (found, *(known for known in recent if known is not found))[:MOST]
    return found.recipe


class _KnownRecipe(NamedTuple):
    """A recipe, and what it was made for."""

    names: tuple[str, ...]
    signatures: Sequence[TensorSignature]
    device: torch.device
    recipe: Recipe

    def fits(self, names: tuple[str, ...], tensors: Mapping[str, torch.Tensor], device: torch.device) -> bool:
        """Whether it is for such weights. It makes no list of signatures, which would cost a collection of garbage."""
        return (
            self.device == device
            and self.names == names
            and all(map(eq, self.signatures, map(signature_of, tensors.values())))
        )


_recent: WeakKeyDictionary[Target, tuple[_KnownRecipe, ...]] = WeakKeyDictionary()
"""The recipe that was used last is the first."""


def _chosen(devices: Iterable[torch.device]) -> torch.device:
    """Return the first GPU of ``devices``, where tensors lie; else the current GPU; else the CPU."""
    for device in devices:
        if device.type == "cuda":
            return device
    return _numbered(torch.device("cuda")) if torch.cuda.is_available() else torch.device("cpu")


def _numbered(device: torch.device) -> torch.device:
    """Return ``device`` as tensors on it say it: the current GPU has a number, too."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _backends_on(device: torch.device, tensors: Sequence[ComputedTensor]) -> list[Backend]:
    """Return what computes ``tensors`` on ``device``: Triton what its kernels can, torch the rest."""
    if not backend.has_triton(device):
        return [TorchBackend(tensors, device)]
    from ckpt_transport_fp8.triton_backend import TritonBackend, can_compute

    by_triton = [tensor for tensor in tensors if can_compute(tensor, device)]
    rest = [tensor for tensor in tensors if not can_compute(tensor, device)]
    return [TritonBackend(by_triton, device), TorchBackend(rest, device)]


def _computed(
    number: int, signature: TensorSignature, want: Wanted, offset: int, scales: ScaleLayout
) -> ComputedTensor | None:
    """None for a tensor without scales."""
    if want.scheme is None or want.scale is None:
        return None
    columns = signature.shape[-1] if signature.shape else 1
    shape, dtype = (signature.shape.numel() // columns, columns), dtypes.TORCH[want.spec.dtype]
    group, first = want.scheme.group(want.spec.shape), scales.first_groups[want.scale.name]
    return ComputedTensor(number, signature.dtype, signature.device, shape, dtype, offset, group, first)


def _reaches_less(name: str, than: torch.dtype) -> bool:
    """Whether numbers of ``than`` may be too large for the dtype with this name."""
    return torch.finfo(dtypes.TORCH[name]).max < torch.finfo(than).max


def _conversions(specs: Sequence[TensorSpec], wanted: Sequence[Wanted]) -> tuple[Conversion, ...]:
    names: defaultdict[str, list[str]] = defaultdict(list)
    for spec, want in zip(specs, wanted, strict=True):
        if want.scheme is not None and want.scale is not None:
            names[f"{want.scheme}, from {spec.dtype}"] += (want.spec.name, want.scale.name)
        elif want.spec != spec:
            names[f"{want.spec.dtype} from {spec.dtype}"].append(want.spec.name)
    return tuple(Conversion(how, tuple(each)) for how, each in names.items())
