"""A target is what an engine's loader expects.

It is read from the checkpoint that the engine was started from, or from its ``config.json``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckpt_transport import ConfigError, PlanMismatchError
from ckpt_transport.spi import INDEX, TensorSpec, from_directory, parse_object, without_nul
from ckpt_transport_fp8.config import COMPRESSED, Quantization, parse
from ckpt_transport_fp8.scheme import E4M3, WEIGHT, Scheme

CONFIG = "config.json"
COMPANIONS = ("input_scale", "output_scale", "q_scale", "k_scale", "v_scale")
"""Last parts of the names of scales beside a weight that are not its own."""
FLOATS = frozenset({"BF16", "F16", "F32"})
"""What can be quantized, and what scales are stored in."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What becomes of one tensor.

    Attributes:
        spec: as the target has it.
        scheme: how it is quantized; None when it is not.
        scale: the tensor with its scales.
    """

    spec: TensorSpec
    scheme: Scheme | None = None
    scale: TensorSpec | None = None


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Target:
    """What weights are made for. Equal to itself only: what has been worked out for one is kept with it.

    Attributes:
        name: where this is from, for messages.
        quantization: which modules are FP8, and how.
        tensors: of the target's own checkpoint, by name; None when only its configuration is known. Then every matrix
            called ``weight`` is quantized whose module is a target, is not ignored, and is by its name no embedding,
            no head and no router.
    """

    name: str
    quantization: Quantization
    tensors: Mapping[str, TensorSpec] | None = None

    def __post_init__(self) -> None:
        if self.tensors is not None:
            object.__setattr__(self, "tensors", dict(self.tensors))

    def wants(self, source: TensorSpec, brought: Collection[str]) -> Wanted:
        """Return what becomes of ``source``.

        Args:
            source: a tensor of the new version.
            brought: the names of all that come with it.

        Raises:
            PlanMismatchError: the target has no such tensor, has it in another shape or type, or needs something with
                it that cannot be computed from weights.
        """
        wanted = self._guessed(source) if self.tensors is None else self._known(source, self.tensors)
        if wanted.scheme is not None:
            self._check_companions(source, wanted, brought)
        return wanted

    def _known(self, source: TensorSpec, tensors: Mapping[str, TensorSpec]) -> Wanted:
        spec = tensors.get(source.name)
        if spec is None:
            raise PlanMismatchError(f"tensor {source} is not in {self.name}")
        if spec == source:
            return Wanted(spec)
        if spec.shape != source.shape or source.dtype not in FLOATS:
            raise PlanMismatchError(f"tensor {source} is {spec.dtype} {list(spec.shape)} in {self.name}")
        if spec.dtype in FLOATS:
            return Wanted(spec)
        group = self.quantization.group_of(_module(source.name))
        if spec.dtype != E4M3 or group is None or len(spec.shape) != 2:
            raise PlanMismatchError(
                f"tensor {source} is {spec.dtype} in {self.name}, and its quantization_config does not say how"
            )
        name, shapes = group.scheme.scale_name(source.name), group.scheme.scale_shapes(spec.shape)
        scale = tensors.get(name)
        if scale is None or scale.shape not in shapes or scale.dtype not in FLOATS:
            what = "lacks" if scale is None else f"has {scale} for"
            raise PlanMismatchError(f"{self.name} {what} {name}, which should be of shape {list(shapes[0])}")
        return Wanted(spec, group.scheme, scale)

    def _guessed(self, source: TensorSpec) -> Wanted:
        group = self.quantization.group_of(_module(source.name))
        matrix = len(source.shape) == 2 and source.name.endswith(f".{WEIGHT}") and source.dtype in FLOATS
        if group is None or not matrix:
            return Wanted(source)
        dtype = source.dtype if self.quantization.method == COMPRESSED else "F32"
        scale = TensorSpec(group.scheme.scale_name(source.name), dtype, group.scheme.scale_shapes(source.shape)[0])
        return Wanted(TensorSpec(source.name, E4M3, source.shape), group.scheme, scale)

    def _check_companions(self, source: TensorSpec, wanted: Wanted, brought: Collection[str]) -> None:
        assert wanted.scale is not None
        if wanted.scale.name in brought:
            raise PlanMismatchError(f"tensor {source} is to be quantized, and comes with {wanted.scale.name}")
        module = _module(source.name)
        group = self.quantization.group_of(module)
        needed = {"input_scale"} if group is not None and group.needs_input_scale else set()
        if self.tensors is not None:
            needed |= {kind for kind in COMPANIONS if f"{module}.{kind}" in self.tensors}
        missing = [name for kind in sorted(needed) if (name := f"{module}.{kind}") not in brought]
        if missing:
            raise PlanMismatchError(
                f"{self.name} needs {', '.join(missing)}, which cannot be computed from weights; bring it with them"
            )


def read_target(path: Path) -> Target:
    """Read the target at ``path``: the directory of its checkpoint, or its ``config.json`` alone.

    Raises:
        ConfigError: there is no ``config.json``, or it does not say how weights become FP8.
        CheckpointError: a file is damaged.
    """
    without_nul(path, ConfigError)
    file = path / CONFIG if path.is_dir() else path
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; give the target's directory") from error
    quantization = parse(parse_object(text, str(file)), str(file))
    if not path.is_dir() or not ((path / INDEX).exists() or any(path.glob("*.safetensors"))):
        return Target(str(path), quantization)
    tensors = {entry.spec.name: entry.spec for part in from_directory(path) for entry in part.tensors}
    return Target(str(path), quantization, tensors)


def _module(name: str) -> str:
    return name.rpartition(".")[0]
