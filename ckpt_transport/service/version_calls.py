"""The calls by which a parameter server is given versions, and lets them go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckpt_transport.checkpoint import Loan, StoredVersion, TensorPairs, Tensors
from ckpt_transport.service.auto import AnyMapping
from ckpt_transport.service.server_versions import ServerVersions
from ckpt_transport.update.progress import Progress


class VersionCalls:
    """What a parameter server says of its versions.

    Args:
        versions: takes them in.
        patience: seconds to wait for a call that uses a version which is let go.
    """

    def __init__(self, versions: ServerVersions, patience: float) -> None:
        self._versions, self._patience = versions, patience

    def register(
        self,
        version: str,
        tensors: Tensors | TensorPairs | Loan | None = None,
        *,
        files: Sequence[Path] | None = None,
        directory: Path | None = None,
        replicated: bool = False,
        mapping: AnyMapping = None,
        base: str = "",
        progress: Progress | None = None,
    ) -> StoredVersion:
        """Take a version in; exactly one of ``files``, ``directory`` and ``tensors``.

        With several source ranks, the ranks share out ``files`` and ``directory``; ``tensors`` are this rank's own, and
        may be none. All ranks together must give every byte of every tensor.

        Args:
            version: its name: printable characters, at most 1,000.
            tensors: by name, on any devices, as ``state_dict()`` returns them. DTensors (FSDP2, tensor parallel) are
                taken as they are: every rank of their mesh gives its part, and nothing is gathered. Other parts are
                given as :class:`~ckpt_transport.TensorShard`. What is no tensor under ``_extra_state`` is left out.
                An iterable of pairs of name and tensor serves frameworks that gather layer by layer: each is copied
                before the next is asked for, and not kept. It must not call this server. What an adapter makes, as
                ``ckpt_transport_fp8.quantized``, is computed now, and not mapped.
            files: safetensors files.
            directory: a checkpoint as Hugging Face lays it out. Where its index and its files, or two files, do not go
                together, it is refused.
            replicated: other ranks give plain tensors of the same names with equal elements, and one of them sends
                each. Beside DTensors plain tensors are taken for such.
            mapping: rules by which the trainer's names, types and shapes become the engines'. A rule that matches no
                tensor is an error where there is one source, unless it is optional. With ``"auto"`` names, types and
                shapes are compared with what the sinks of the configuration expect, and the rules found are logged;
                where no sink says it, well-known prefixes are taken off. All ranks must know the sinks then.
            base: what sinks must serve, where these tensors are only those that differ from it.
            progress: told how far it is.

        Raises:
            CheckpointError: the files or tensors are not what they claim to be.
            SharedMemoryError: the setting ``pool`` is ``shared``, and ``/dev/shm`` is too small.
            StoreError: there is a version of that name already.
            UsageError: the server was closed, or another process made it. All other calls raise it, too.
        """
        return self._versions.register(
            version, files, directory, tensors, progress, replicated=replicated, mapping=mapping, base=base
        )

    def lend(
        self,
        version: str,
        tensors: Tensors | Loan,
        *,
        replicated: bool = False,
        mapping: AnyMapping = None,
        base: str = "",
    ) -> StoredVersion:
        """Take a version in where it lies, as on the GPU of a trainer beside the engine: nothing is copied beforehand.

        Buckets are gathered from ``tensors`` when they are sent. Nobody may change them until the version is
        unregistered. An update looks before and after it sends them, and fails where torch has counted a write, or
        where some bytes that it compares differ; it does not see single elements that are written past torch, as
        through ``tensor.data`` or NumPy.

        Args:
            version: its name.
            tensors: as those of :meth:`register`, and contiguous; or what an adapter makes of them, as
                ``ckpt_transport_fp8.quantized``.
            replicated, mapping, base: as those of :meth:`register`; what is cast is cast when it is sent, where it
                lies. What an adapter makes is not mapped any more.

        Raises:
            CheckpointError: a tensor is not contiguous, or nothing that safetensors could hold; names it.
            StoreError: there is a version of that name already.
        """
        return self._versions.lend(version, tensors, replicated=replicated, mapping=mapping, base=base)

    def unregister(self, version: str) -> None:
        """Let a version go; its memory is reused by the next version of the same size. Waits for a running update."""
        self._versions.let_go(version, self._patience)
