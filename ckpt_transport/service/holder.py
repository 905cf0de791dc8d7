"""A holder keeps a version available to those who join later."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch

from ckpt_transport.checkpoint import Progress, Store, StoredVersion, with_digests
from ckpt_transport.config import Config
from ckpt_transport.memory import MemoryKind
from ckpt_transport.release import RELEASE
from ckpt_transport.service import questions as q
from ckpt_transport.service.address_file import AddressFile, HolderAddress, made_now
from ckpt_transport.service.listener import Listener
from ckpt_transport.update import messages as m
from ckpt_transport.update.available import uses_devices
from ckpt_transport.update.follower import Follower
from ckpt_transport.update.host import host_of
from ckpt_transport.update.introduction import States
from ckpt_transport.update.participant import Participant


class Holder(Listener):
    """Serves one version to whoever is brought to it. Exactly one of ``files``, ``directory`` and ``tensors``.

    Args:
        version: its name.
        files, directory, tensors: as :meth:`ParameterServer.register`.
        address: where it can be invited; empty for a new address that only this user can reach.
        config: by default from the environment.
        progress: told how much has been read.

    Raises:
        CheckpointError, SharedMemoryError: as :meth:`ParameterServer.register`.
        ConfigError, ControlError: the address cannot be had.
    """

    _kind = "holder"

    def __init__(
        self,
        version: str,
        *,
        files: Sequence[Path] | None = None,
        directory: Path | None = None,
        tensors: Mapping[str, torch.Tensor] | None = None,
        address: str = "",
        config: Config | None = None,
        progress: Progress | None = None,
    ) -> None:
        config = Config.given(config)
        self._store = Store(
            pool=None if config.pool == "auto" else MemoryKind(config.pool),
            threads=config.read_threads or None,
            pinned=uses_devices(config),
        )
        super().__init__(address, config)
        try:
            stored = self._store.register(version, files=files, directory=directory, tensors=tensors, progress=progress)
            self._stored: StoredVersion = with_digests(stored)
            self._since = time.time()
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> str:
        """What it serves."""
        return self._stored.manifest.version

    @property
    def label(self) -> str:
        return f"holder of {self.version} at {self.address}"

    @property
    def address_file(self) -> AddressFile:
        """Where this version can be had, for a file."""
        manifest = self._stored.manifest
        here = HolderAddress(self.address, host_of(self.config))
        return made_now(manifest.version, manifest.fingerprint, len(manifest.tensors), manifest.nbytes, [here])

    def _release(self) -> None:
        super()._release()
        self._store.close()

    def _refuses(self, invite: m.Invite) -> str:
        if invite.version == self.version:
            return ""
        return f"it holds '{self.version}' now, and '{invite.version}' is asked for; use the file that it wrote last"

    def _follow(self, invite: m.Invite, deadline: float) -> Follower:
        participant = Participant(self._mailbox, self._table, self._plans, self._stored.extents, None, deadline)
        return Follower(invite.update, invite.nonce, participant, None, self.config.join_timeout, deadline)

    def _introduce(self, invite: m.Invite, states: States) -> m.Join:
        return self._introducer.of_source(self.label, self._stored.manifest, states, self._table.names, self._plans)

    def _served(self) -> q.ServedVersion:
        return q.ServedVersion(
            self.label,
            self.version,
            "",
            self._target_version,
            "",
            self._watchdog.stuck,
            release=RELEASE,
            since=self._since,
            clock=time.time(),
            state="" if self._follower is None else self._follower.state,
        )

    def _committed(self) -> None:
        """Others serve it, too."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
