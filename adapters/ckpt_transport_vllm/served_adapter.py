"""An adapter is brought alone to servers that serve adapters: a hundredth of the bytes of the weights beneath."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import torch

from ckpt_transport import Config, ConfigError, EngineError
from ckpt_transport_vllm.adapter_files import factors_of, save_adapter
from ckpt_transport_vllm.server import VllmServer


class ServedAdapter:
    """A LoRA adapter that running vLLM servers serve beside their weights. Requests ask for it by its name.

    Its bytes travel in a folder that all servers see. vLLM reads an adapter again when it had to make room for others,
    so the folder of the version that is served stays until the next one is.

    Args:
        endpoints: their URLs, as ``http://127.0.0.1:8000``. They are started with ``--enable-lora``, and with
            ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`` in their environment.
        name: under which requests ask for it.
        folder: as of a file system that this host and theirs share; on one host ``/dev/shm`` will do.
        config: settings; by default from the environment.

    Attributes:
        version: what all servers serve; empty before the first one.

    Raises:
        ConfigError: no endpoint, or a name that is none of a file.
    """

    def __init__(self, endpoints: Sequence[str], name: str, folder: Path, config: Config | None = None) -> None:
        if not endpoints:
            raise ConfigError("name at least one endpoint, as http://127.0.0.1:8000")
        _check_name("an adapter", name)
        config = Config.given(config)
        self.name, self.version = name, ""
        self._folder, self._timeout = Path(folder), config.update_timeout
        self._servers = [VllmServer(url, config.api_key_file) for url in endpoints]
        self._threads = ThreadPoolExecutor(len(endpoints), "ckpt-transport-vllm")

    def publish(
        self, version: str, tensors: Mapping[str, torch.Tensor], settings: Any, adapter: str = "default"
    ) -> None:
        """Have every server serve a version of the adapter, or every one the version before.

        An answer that is under way goes on with the new version. One process calls, of a trainer whose factors are
        DTensors all ranks: those above 0 with ``settings`` of None, which only takes part in gathering.

        Args:
            version: a name that no version has here.
            tensors: ``state_dict()`` of PEFT's model, or its factors alone.
            settings: of the adapter, as ``model.peft_config["default"]``.
            adapter: its name at the trainer.

        Raises:
            CheckpointError: the tensors have no factor of the adapter.
            EngineError: a server does not load it; names it, and the cure. All serve the version before.
        """
        factors = factors_of(tensors, adapter)
        if settings is None:
            return
        _check_name("a version", version)
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
        """Let go of the servers, which serve on what they serve."""
        self._threads.shutdown()
        for server in self._servers:
            server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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


def _check_name(what: str, name: str) -> None:
    if not name or Path(name).name != name or name.startswith(".") or not name.isprintable():
        raise ConfigError(f"{what} cannot be called {name!r}, which becomes the name of a folder")
