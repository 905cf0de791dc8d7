"""The way into a plain PyTorch module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import torch

from ckpt_transport import Engine, Gate, LoadedBucket, dtypes
from ckpt_transport.memory import Fence, Nearby, copy_bytes, fence
from ckpt_transport.planning import Share, TensorSpec
from ckpt_transport.recording import RecordedLoading

Loader = Callable[[Iterable[tuple[str, torch.Tensor]]], None]
"""Takes (name, whole tensor) pairs and copies what it wants of them, as the ``load_weights`` of inference engines does.

The tensors are read-only views of memory that is reused when the call returns: copy out of them, keep none of them.
"""


class TorchEngine(Engine):
    """Loads tensors into the parameters and persistent buffers of a module, by their names in its ``state_dict``.

    What else a module keeps there, by ``get_extra_state``, stays as it is.
    """

    def __init__(self, module: torch.nn.Module, group: str = "", label: str = "") -> None:
        self.gate = Gate()
        self.group, self.label = group, label
        self._targets = {
            name: tensor.detach()
            for name, tensor in module.state_dict(keep_vars=True).items()
            if isinstance(tensor, torch.Tensor)
        }
        self._expected = tuple(
            TensorSpec(name, dtypes.name_of(tensor.dtype), dtypes.shape_of(tensor))
            for name, tensor in self._targets.items()
        )
        self.whole_tensors = not all(tensor.is_contiguous() for tensor in self._targets.values())
        gpus = dict.fromkeys(tensor.device for tensor in self._targets.values() if tensor.is_cuda)
        self.device, *self._other_gpus = gpus or [torch.device("cpu")]
        self.enqueues = all(tensor.device == self.device for tensor in self._targets.values())
        self._nearby = Nearby(self.device)
        self._raw = {
            name: tensor.view(-1).view(torch.uint8) for name, tensor in self._targets.items() if tensor.is_contiguous()
        }

    def expects(self) -> tuple[TensorSpec, ...] | None:
        return self._expected

    def ties(self) -> tuple[frozenset[str], ...]:
        sharing: defaultdict[tuple[int, torch.Size, tuple[int, ...]], set[str]] = defaultdict(set)
        for name, tensor in self._targets.items():
            if tensor.numel():
                sharing[tensor.data_ptr(), tensor.shape, tensor.stride()].add(name)
        return tuple(frozenset(names) for names in sharing.values() if len(names) > 1)

    def load(self, pieces: LoadedBucket) -> Fence | None:
        if self.enqueues:
            pieces = pieces.brought(self._nearby.bring(pieces.raw))
        for piece in pieces:
            raw = self._raw.get(piece.spec.name)
            if raw is None:
                self._targets[piece.spec.name].copy_(piece.tensor())
                continue
            part = raw if piece.whole else raw[piece.offset : piece.offset + piece.raw.numel()]
            if part.is_cuda:
                part.copy_(piece.raw, non_blocking=True)
            else:
                copy_bytes(part, piece.raw)
        return self._read()

    def _read(self) -> Fence | None:
        """When nothing that was enqueued reads the pieces any more; on GPUs other than the engine's it has ended."""
        for gpu in self._other_gpus:
            torch.cuda.current_stream(gpu).synchronize()
        return fence(self.device)

    def hold(self) -> int:
        return self.gate.hold()

    def advance(self, forwards: int, timeout: float) -> None:
        self.gate.advance(forwards, timeout)
        for gpu in (self.device, *self._other_gpus):
            if gpu.type == "cuda":
                torch.cuda.synchronize(gpu)

    def finish(self) -> None:
        """Parameters were written in place; nothing else depends on them."""
        self._nearby.close()

    def resume(self) -> float:
        return self.gate.resume()

    def taint(self, reason: str) -> None:
        self._nearby.close()
        self.gate.taint(reason)


class LoaderEngine(TorchEngine):
    """Loads through a loader of the engine's own, which slices its shard out of whole tensors.

    What it does is recorded at the first update, and replayed without it from then on, where that is proved to leave
    the same bytes; see :class:`~ckpt_transport.recording.RecordedLoading`.

    Args:
        module: what is loaded.
        loader: its loader.
        group, label: see :class:`~ckpt_transport.Engine`.
        verify_always: compare each replay with the loader.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loader: Loader,
        group: str = "",
        label: str = "",
        *,
        verify_always: bool = False,
    ) -> None:
        super().__init__(module, group, label)
        self.whole_tensors = True
        self.enqueues = False
        self._loading = RecordedLoading(module, loader, always=verify_always)

    def share(self) -> Share | None:
        return self._loading.share()

    def prepare(self, specs: Sequence[TensorSpec], share: Share | None) -> None:
        self._loading.prepare(specs, share)

    def expects(self) -> tuple[TensorSpec, ...] | None:
        """Only the loader knows: its names and shapes are the checkpoint's, not the module's."""
        return None

    def load(self, pieces: LoadedBucket) -> Fence | None:
        self._loading.load(pieces)
        return self._read()

    def finish(self) -> None:
        self._loading.finish()
        self.told = self._loading.told

    def taint(self, reason: str) -> None:
        self._loading.abandon()
        super().taint(reason)
