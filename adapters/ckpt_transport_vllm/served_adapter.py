"""An adapter is brought alone to servers that serve adapters: a hundredth of the bytes of the weights beneath."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ckpt_transport import ConfigError, EngineError
from ckpt_transport_vllm.adapter import ServedAs, check_file_name
from ckpt_transport_vllm.adapter_files import save_adapter
from ckpt_transport_vllm.server import VllmServer


class ServedAdapter:
    """A LoRA adapter that running vLLM servers serve beside their weights. Requests ask for it by its name.

    Its bytes travel in a folder that all servers see. vLLM reads an adapter again when it had to make room for others,
    so the folder of the version that is served stays until the next one is.

    Args:
        servers: started with ``--enable-lora``, and with ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`` in their environment.
        served: its name, and the folder.
        timeout: in seconds, for a server to load a version.

    Attributes:
        version: what all servers serve; empty before the first one.
    """

    def __init__(self, servers: Sequence[VllmServer], served: ServedAs, timeout: float) -> None:
        self.name, self.version = served.name, ""
        self._folder, self._timeout, self._servers = Path(served.folder), timeout, servers
        self._threads = ThreadPoolExecutor(len(servers), "ckpt-transport-vllm")

    def publish(self, version: str, factors: Mapping[str, torch.Tensor], settings: Any) -> None:
        """Have every server serve a version of the adapter, or every one the version before.

        An answer that is under way goes on with the new version.

        Args:
            version: a name that no version has here.
            factors: by their names in an adapter's file.
            settings: of the adapter, as ``model.peft_config["default"]``.

        Raises:
            ConfigError: there is such a version, or it cannot be called so.
            EngineError: a server does not load it; names it, and the cure. All serve the version before.
        """
        check_file_name("a version", version)
        if version == self.version or self._path(version).exists():
            raise ConfigError(f"there is a version '{version}' of adapter '{self.name}' already; choose another name")
        save_adapter(self._path(version), factors, settings)
        try:
            self._bring(version)
        except BaseException:
            shutil.rmtree(self._path(version), ignore_errors=True)
            raise
        before, self.version = self.version, version
        if before:
            shutil.rmtree(self._path(before), ignore_errors=True)

    def withdraw(self) -> None:
        """Have no server serve the adapter any more."""
        if self.version:
            self._unload(self._servers)
            shutil.rmtree(self._path(self.version), ignore_errors=True)
            self.version = ""

    def close(self) -> None:
        """Servers serve on what they serve."""
        self._threads.shutdown()

    def _path(self, version: str) -> Path:
        return self._folder / f"{self.name}-{version}"

    def _bring(self, version: str) -> None:
        asked = [(server, self._threads.submit(self._load, server, version)) for server in self._servers]
        failures = {server: error for server, loading in asked if (error := loading.exception()) is not None}
        if not failures:
            return
        changed = [server for server in self._servers if server not in failures]
        problems = []
        try:
            if self.version:
                for server in changed:
                    self._load(server, self.version)
            else:
                self._unload(changed)
        except EngineError as error:
            problems.append(f"and could not be taken back: {error}")
        said = "; ".join([*map(str, failures.values()), *problems])
        raise EngineError(f"adapter '{self.name}' is not served as '{version}': {said}") from next(
            iter(failures.values())
        )

    def _load(self, server: VllmServer, version: str) -> None:
        server.load_adapter(self.name, self._path(version), self._timeout)

    def _unload(self, servers: Sequence[VllmServer]) -> None:
        for server in servers:
            server.unload_adapter(self.name)
