"""Quantizers make versions for engines that serve quantized weights.

An adapter registers a :data:`Quantize` under the entry point group ``ckpt_transport.quantizers``; the commands find it
there by the ``quant_method`` of the model that it is for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from ckpt_transport.checkpoint import Loan, StoredVersion
from ckpt_transport.checkpoint.strict_json import parse_object
from ckpt_transport.errors import ConfigError
from ckpt_transport.paths import without_nul

GROUP = "ckpt_transport.quantizers"
CONFIG = "config.json"
Quantize = Callable[[StoredVersion, Path], Loan]
"""Makes of a registered version what a target's loader expects: the version, and the target's directory or its
``config.json``. To be given to :meth:`ckpt_transport.ParameterServer.lend`."""


def quantizer_for(target: Path) -> Quantize:
    """Find what makes versions for a target.

    Args:
        target: the directory of the checkpoint that the engines were started from, or its ``config.json``.

    Raises:
        ConfigError: the target is not quantized, or no adapter knows how, or two say so.
        CheckpointError: its ``config.json`` is not JSON.
    """
    method = _method(target)
    found = [point for point in entry_points(group=GROUP) if point.name == method]
    if not found:
        names = ", ".join(sorted({point.name for point in entry_points(group=GROUP)})) or "none"
        raise ConfigError(f"no adapter quantizes for quant_method '{method}' of {target}; there are: {names}")
    if len({point.value for point in found}) > 1:
        who = " and ".join(f"{point.value} of {point.dist.name if point.dist else '?'}" for point in found)
        raise ConfigError(f"two adapters quantize for quant_method '{method}': {who}; uninstall one")
    quantize: Quantize = found[0].load()
    return quantize


def _method(target: Path) -> str:
    without_nul(target, ConfigError)
    path = target / CONFIG if target.is_dir() else target
    try:
        config = parse_object(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give the directory of a checkpoint") from error
    for part in (config, config.get("text_config")):
        quantization = part.get("quantization_config") if isinstance(part, dict) else None
        if isinstance(quantization, dict):
            return str(quantization.get("quant_method", ""))
    raise ConfigError(
        f"{path} has no quantization_config: engines that are started from it take BF16 weights as they are"
    )
