"""Runs vLLM's layerwise reload: the model's own loader fills the memory that is there, one layer at a time.

vLLM replaces every parameter by a stand-in without memory, keeps what the loader is given until it has all of a layer,
then lets the loader and the quantization methods work on a fresh copy of that layer, and copies the result to where the
parameters were. So pointers that kernels and CUDA graphs hold stay good; ``graph_tensors.py`` sees to others.

It is not a public interface of vLLM. What is used of it is in this file, and ``versions.py`` says for which releases.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ckpt_transport import LoadedPiece, PlanMismatchError
from ckpt_transport.spi import LoadPass, TensorAssembler, TensorSpec, by_loader_in_words, layer_of
from ckpt_transport_vllm.graph_tensors import GraphTensors
from ckpt_transport_vllm.updated_model import UpdatedModel

ATTENTION_SCALES = frozenset({"_q_scale", "_k_scale", "_v_scale", "_prob_scale"})


class LayerwisePass(LoadPass):
    """Gives the loader whole tensors, in memory that lasts until it has all of a layer.

    Args:
        target: the model.
        coming: the tensors that the loader will be given; None when that is not known, so that all parameters are
            checked.
        refusal: why the loader has to load.
        modules: what of the model is reloaded; all of it by default.
        beside: modules that are loaded otherwise at the same time.
    """

    def __init__(
        self,
        target: UpdatedModel,
        coming: Sequence[TensorSpec] | None,
        refusal: str = "",
        modules: Sequence[torch.nn.Module] | None = None,
        beside: Sequence[torch.nn.Module] = (),
    ) -> None:
        self._target, self._refusal = target, refusal
        self._modules = [target.model] if modules is None else modules
        self._processed = [*self._modules, *beside]
        self._graph_tensors = GraphTensors(self._processed, waits_for_the_end)
        self._checks = coming is None
        self._unloaded = {name for name, _ in target.model.named_parameters()} if self._checks else set()
        self._missing = Counter(layer_of(spec.name) for spec in coming or ())
        self._assembler = TensorAssembler()
        self._copies: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        self._seconds = 0.0

    def begin(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        with self._target.configured():
            for module in self._modules:
                forget_prepacked_experts(module)
                forget_attention_scales(self._target, (each for each in module.modules() if waits_for_the_end(each)))
                initialize_layerwise_reload(module)

    def load(self, bucket: Sequence[LoadedPiece]) -> None:
        began = time.perf_counter()
        lent = {piece.spec.name for piece in bucket if piece.stable and piece.whole}
        tensors = {piece.spec.name: _stable_tensor(piece) for piece in self._assembler.whole(bucket)}
        for name in tensors.keys() - lent:
            self._copies[layer_of(name)].append(tensors[name])
        if tensors:
            loaded = self._target.load(tensors.items())
            self._unloaded -= self._unloaded if loaded is None else loaded
        for name in tensors:
            layer = layer_of(name)
            self._missing[layer] -= 1
            if not self._missing[layer] and layer in self._copies:
                self._settle(self._copies.pop(layer))
        self._seconds += time.perf_counter() - began

    def finish(self) -> str:
        """See :meth:`LoadPass.finish`.

        Raises:
            PlanMismatchError: a parameter was not loaded, or only in part, where it was not known what comes.
        """
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        began, model = time.perf_counter(), self._target.model
        if self._checks:
            self._check_complete()
        with finishing(self._target):
            if self._processed:
                finalize_layerwise_reload(model, self._target.model_config)
            if next(model.parameters()).is_cpu:
                _repack_tied_heads(model)
                _renew_unpacked_convolutions(model)
        self._graph_tensors.bring_back()
        self._copies.clear()
        return by_loader_in_words(self._seconds + time.perf_counter() - began, self._refusal)

    def restore(self) -> None:
        """Put parameters back where they were, whatever is in them, so that the model can be reloaded again."""
        self._copies.clear()
        self._assembler.clear()
        put_back(self._target.model)
        self._graph_tensors.bring_back()

    def _settle(self, arrived: Iterable[torch.Tensor]) -> None:
        """Finish layers that lack only padding, so that nothing is kept longer than its layer is incomplete.

        Args:
            arrived: tensors of checkpoint layers of which all has been loaded.
        """
        from vllm.model_executor.model_loader.reload import layerwise

        complete = {tensor.untyped_storage().data_ptr() for tensor in arrived}
        with self._target.configured(), torch.no_grad():
            for module in self._target.model.modules():
                info = layerwise.get_layerwise_info(module)
                if not info.can_load() or not info.loaded_weights or waits_for_the_end(module):
                    continue
                kept = {
                    value.untyped_storage().data_ptr()
                    for _, bound in info.loaded_weights
                    for value in bound.arguments.values()
                    if isinstance(value, torch.Tensor) and not value.is_meta
                }
                if kept <= complete:
                    layerwise._layerwise_process(module, info)

    def _check_complete(self) -> None:
        """See that every parameter was loaded, as nobody knew which tensors to expect.

        As far as that can be told: not for quantized weights, and not where parameters are padded.

        Raises:
            PlanMismatchError: one was not, or only in part.
        """
        from vllm.model_executor.model_loader.reload import layerwise

        if self._target.model_config.quantization is not None or self._target.vllm_config.lora_config:
            return
        missing = sorted(self._unloaded)
        for name, module in self._target.model.named_modules():
            info = layerwise.get_layerwise_info(module)
            if info.can_load() and 0 < info.load_numel < info.load_numel_total and not _is_padded(module):
                missing.append(f"part of {name}")
        if missing:
            raise PlanMismatchError(f"the version has nothing for {', '.join(missing[:5])}")


def put_back(model: torch.nn.Module, but: Collection[torch.nn.Module] = ()) -> None:
    """Give modules the tensors that kernels read, whatever is in them; all but some."""
    from vllm.model_executor.model_loader.reload import layerwise

    kept = set(but)
    for module in model.modules():
        info = layerwise.get_layerwise_info(module)
        if info.can_load() and module not in kept:
            if info.kernel_tensors is not None:
                layerwise._place_kernel_tensors(module, info)
            info.reset()
    layerwise.LOADING_LAYERS.clear()
    root: Any = model
    if hasattr(root, "_original_do_torchao_reload"):
        root._do_torchao_reload = root._original_do_torchao_reload


def _stable_tensor(piece: LoadedPiece) -> torch.Tensor:
    """The tensor, in memory that outlives the piece."""
    return piece.tensor() if piece.stable else piece.tensor().clone()


@contextmanager
def finishing(target: UpdatedModel) -> Iterator[None]:
    """As when vLLM starts: what it makes without a dtype, as scales of keys and values, has the model's."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(target.model_config.dtype)
    try:
        with target.configured(), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(before)


def _is_padded(module: torch.nn.Module) -> bool:
    """Whether parameters are larger than what a checkpoint has for them: vocabularies are, and attention is special."""
    return hasattr(module, "num_embeddings_padded") or waits_for_the_end(module)


def waits_for_the_end(module: torch.nn.Module) -> bool:
    """Whether vLLM processes this layer after all others."""
    from vllm.model_executor.layers import attention

    defers = getattr(attention, "is_deferred_attention_layer", None)
    if defers is not None:
        return bool(defers(module))
    return isinstance(module, (attention.Attention, attention.MLAAttention))


def forget_prepacked_experts(model: torch.nn.Module) -> None:
    """Have CPU kernels repack experts: where one was built before, vLLM would not build it again."""
    if not all(parameter.is_cpu for parameter in model.parameters()):
        return
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def has_odd_attention_scales(model: torch.nn.Module) -> bool:
    """Whether attention has other scales than a reload without any leaves."""
    attention = [module for module in model.modules() if waits_for_the_end(module)]
    scales = (module.get_buffer(name) for module in attention for name in ATTENTION_SCALES & module._buffers.keys())
    return any(bool((scale != 1.0).any()) for scale in scales)


def forget_attention_scales(target: UpdatedModel, attention: Iterable[torch.nn.Module]) -> None:
    """Give attention the scales that it has where a version brings none, as when vLLM starts from that version's files.

    A start without weights leaves random ones, which a reload would keep. Nothing is done where vLLM calculates them.
    """
    if getattr(target.vllm_config.cache_config, "calculate_kv_scales", False):
        return
    scales: list[torch.Tensor] = []
    for module in attention:
        for name in ATTENTION_SCALES & module._buffers.keys():
            scales.append(module.get_buffer(name))
            setattr(module, f"{name}_float", 1.0)
            on_host = getattr(module, f"{name}_cpu", None)
            if isinstance(on_host, torch.Tensor):
                on_host.fill_(1.0)
    _fill_with_ones(scales)


def _fill_with_ones(tensors: list[torch.Tensor]) -> None:
    """In few launches: a model has hundreds of such tensors."""
    if tensors:
        with torch.no_grad():
            torch._foreach_zero_(tensors)
            torch._foreach_add_(tensors, 1.0)


def _repack_tied_heads(model: torch.nn.Module) -> None:
    """Rebuild the CPU kernels of layers whose weight is another layer's: vLLM rebuilds that of the other one only."""
    for module in packed_together(model.modules()):
        module.quant_method.process_weights_after_loading(module)


def packed_together(modules: Iterable[torch.nn.Module]) -> list[Any]:
    """Layers with CPU kernels of their own for one weight."""
    sharing: defaultdict[int, list[Any]] = defaultdict(list)
    for module in modules:
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and isinstance(weight, torch.Tensor) and weight.numel():
            sharing[weight.data_ptr()].append(module)
    return [module for tied in sharing.values() if len(tied) > 1 for module in tied]


def _renew_unpacked_convolutions(model: torch.nn.Module) -> None:
    """Bring new weights to the view of a convolution that a CPU's mixer computes with.

    vLLM makes that view before it packs the weight elsewhere, and a reload writes only the packed one.
    """
    for module in model.modules():
        view = module._buffers.get("conv_weights")
        unpacked = getattr(getattr(module, "conv1d", None), "_cpu_unpacked_conv_weight", None)
        if view is not None and isinstance(unpacked, torch.Tensor):
            view.copy_(unpacked.view(view.shape))
