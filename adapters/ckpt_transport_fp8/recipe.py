"""What becomes of weights, as far as their names, shapes, types and devices decide it: the same for every version."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from ckpt_transport import CheckpointError
from ckpt_transport.spi import Conversion, Loan, PlacedTensor, ScatteredTensors, TensorSpec, Watched, dtypes, lay_out
from ckpt_transport_fp8.devices import computed_on
from ckpt_transport_fp8.look import Look
from ckpt_transport_fp8.part import Part
from ckpt_transport_fp8.quantizing import Quantizing
from ckpt_transport_fp8.scales import Scale, Scales
from ckpt_transport_fp8.target import Wanted


class Recipe:
    """How a version is made of weights that look so. It knows no weights.

    Args:
        looks: of the weights.
        specs: of the weights.
        wanted: what becomes of each.
        device: where that is computed.
    """

    def __init__(
        self, looks: Sequence[Look], specs: Sequence[TensorSpec], wanted: Sequence[Wanted], device: torch.device
    ) -> None:
        made = [spec for want in wanted for spec in (want.spec, want.scale) if spec is not None]
        offsets, self._nbytes = lay_out(spec.nbytes for spec in made)
        self._placed = tuple(PlacedTensor(spec, 0, at, spec.nbytes) for spec, at in zip(made, offsets, strict=True))
        self._conversions = _conversions(specs, wanted)
        places = {spec.name: offset for spec, offset in zip(made, offsets, strict=True)}
        self._scales = Scales(
            [
                Scale(spec, want.scheme, want.scale, places[want.scale.name])
                for spec, want in zip(specs, wanted, strict=True)
                if want.scheme is not None and want.scale is not None
            ],
            device,
        )
        self._kept: list[tuple[int, int]] = []
        self._narrowed: list[tuple[int, TensorSpec, torch.dtype]] = []
        parts: list[Part] = []
        for number, (look, want) in enumerate(zip(looks, wanted, strict=True)):
            offset = places[want.spec.name]
            if look.dtype == dtypes.TORCH[want.spec.dtype]:
                self._kept.append((number, offset))
            elif look.shape.numel():
                parts.append(_part(number, look, want, offset, self._scales))
                if want.scheme is None and _reaches_less(want.spec.dtype, look.dtype):
                    self._narrowed.append((number, specs[number], dtypes.TORCH[want.spec.dtype]))
        self._compute = computed_on(device, parts)
        self.gpus = {look.device for look in looks if look.device.type == "cuda"}
        """Where weights lie."""

    def loan(self, tensors: Sequence[torch.Tensor], watched: Watched) -> Loan:
        """The version that is made of ``tensors``, contiguous; its scales are complete when this returns.

        Args:
            tensors: in the order of their looks.
            watched: the same.

        Raises:
            CheckpointError: as :meth:`ckpt_transport_fp8.scales.Scales.of`, or a weight without scales is too large for
                its new dtype; names it.
        """
        for number, spec, dtype in self._narrowed:
            if not tensors[number].to(dtype).isfinite().all():
                raise CheckpointError(
                    f"tensor {spec} has elements that are not finite in {dtypes.name_of(dtype)}, which the target "
                    "wants; look at the training run, or have the target in BF16"
                )
        computed = self._compute(tensors)
        largest = computed.largest(self._scales.groups)
        raw = [tensors[number].detach().reshape(-1).view(torch.uint8) for number, _ in self._kept]
        kept = ScatteredTensors(raw, [offset for _, offset in self._kept], self._nbytes, watched)
        scaled = self._scales.of(largest)  # here it waits for a GPU
        return Loan(Quantizing(kept, scaled, computed), self._placed, list(self._conversions))


def _part(number: int, look: Look, want: Wanted, offset: int, scales: Scales) -> Part:
    columns = look.shape[-1] if look.shape else 1
    shape, dtype = (look.shape.numel() // columns, columns), dtypes.TORCH[want.spec.dtype]
    if want.scheme is None or want.scale is None:
        return Part(number, look.dtype, look.device, shape, dtype, offset)
    group, first = want.scheme.group(want.spec.shape), scales.first_groups[want.scale.name]
    return Part(number, look.dtype, look.device, shape, dtype, offset, group, first)


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
