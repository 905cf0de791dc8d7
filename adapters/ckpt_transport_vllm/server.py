"""Calls one running vLLM server through its HTTP interface."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ckpt_transport import EngineError
from ckpt_transport.spi import HttpEngine, NoRouteError, is_loopback, release_of
from ckpt_transport_vllm.control import VllmControl

EXTENSION = "ckpt_transport_vllm.WorkerExtension"
KEEP = "keep"
REFUSES_WHILE_PAUSED = (0, 33)
UNLOAD_SECONDS = 60.0


class VllmServer(HttpEngine, VllmControl):
    """A server at ``url``, as ``http://127.0.0.1:8000``. Every method may raise EngineError."""

    kind = "vLLM"
    route_hint = "start vLLM with VLLM_SERVER_DEV_MODE=1 in its environment, and reach it from a trusted network only"

    @property
    def resume_hint(self) -> str:
        return f"POST {self.url}/resume when it may serve"

    # -- what it is -----------------------------------------------------------------------------------------------

    def configuration(self) -> Mapping[str, Any]:
        """vLLM's own configuration."""
        answer = self._call("GET", "/server_info", params={"config_format": "json"})
        configuration: Mapping[str, Any] = answer["vllm_config"]
        return configuration

    @cached_property
    def parallel_config(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.configuration()["parallel_config"]
        return found

    @property
    def is_near(self) -> bool:
        return is_loopback(urlsplit(self.url).hostname or "")

    def world_size(self) -> int:
        of_each = int(self._call("GET", "/get_world_size", params={"include_dp": "false"})["world_size"])
        return of_each * self.replicas

    def weight_version(self) -> str:
        """The label of the weights that are served; empty where vLLM has none."""
        try:
            return str(self._call("GET", "/weight_info")["weight_version"])
        except NoRouteError:
            return ""

    def is_paused(self) -> bool:
        return bool(self._call("GET", "/is_paused")["is_paused"])

    # -- what it does ---------------------------------------------------------------------------------------------

    def pause(self, mode: str, timeout: float) -> None:
        if mode != KEEP and self._refuses_while_paused:
            self._call("POST", "/sleep", params={"level": "0", "mode": mode}, timeout=timeout)
        else:
            self._call("POST", "/pause", params={"mode": mode, "clear_cache": "false"}, timeout=timeout)

    def resume(self) -> None:
        if self._refuses_while_paused:
            self._call("POST", "/wake_up", params={"tags": "scheduling"})
        else:
            self._call("POST", "/resume")

    @cached_property
    def _refuses_while_paused(self) -> bool:
        """Whether new requests are refused while it is paused in another mode than ``keep``.

        They wait in earlier releases, and still do when it sleeps at level 0, which only holds requests.
        """
        try:
            release = release_of(str(self._call("GET", "/version").get("version", "")), len(REFUSES_WHILE_PAUSED))
        except NoRouteError:
            return False
        return release is not None and release >= REFUSES_WHILE_PAUSED

    def label(self, version: str) -> None:
        """Name the weights that are served, where vLLM has names for them."""
        try:
            self._call("POST", "/update_weight_version", json={"new_version": version})
        except NoRouteError:
            return

    def reset_caches(self) -> None:
        """Drop what was computed with old weights. Running requests compute it again."""
        for path, params in (
            ("/reset_prefix_cache", {"reset_running_requests": "true"}),
            ("/reset_mm_cache", {}),
            ("/reset_encoder_cache", {}),
        ):
            try:
                answer = self._call("POST", path, params=params)
            except NoRouteError:
                continue
            if answer.get("success") is False:
                raise EngineError(f"{self.url} could not clear its prefix cache, which still holds old keys and values")

    def call_workers(self, method: str, **kwargs: Any) -> list[Any]:
        """Call a method of the worker extension on every rank; the answers by rank, of the first replica only."""
        answer = self._call("POST", "/collective_rpc", json={"method": method, "kwargs": kwargs})
        results: list[Any] = answer["results"]
        return results

    def init_native(self, **info: Any) -> None:
        self._call("POST", "/init_weight_transfer_engine", json={"init_info": info})

    def start_native(self, draft: bool) -> None:
        self._call("POST", "/start_draft_weight_update" if draft else "/start_weight_update")

    def update_native(self, patience: float, timeout: float) -> None:
        """Returns when the update has ended, well or not."""
        self._call("POST", "/update_weights", json={"update_info": {"patience": patience}}, timeout=timeout)

    def finish_native(self, version: str | None) -> None:
        self._call("POST", "/finish_weight_update", json={"weight_version": version})

    def load_adapter(self, name: str, folder: Path, timeout: float) -> None:
        """Serve what is in a folder as the adapter of that name, in the place of one that has it."""
        asked = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
        self._adapters("load", asked, timeout, folder)

    def unload_adapter(self, name: str) -> None:
        self._adapters("unload", {"lora_name": name}, UNLOAD_SECONDS)

    def _adapters(self, what: str, asked: Mapping[str, Any], timeout: float, folder: Path | None = None) -> None:
        try:
            self._answer("POST", f"/v1/{what}_lora_adapter", json=asked, timeout=timeout)
        except NoRouteError as error:
            if error.said and folder is not None:
                raise EngineError(
                    f"{self.url} finds no adapter in {folder}; give a folder that all servers see: {error.said}"
                ) from error
            raise EngineError(
                f"{self.url} loads no adapters: start vLLM with --enable-lora, and with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"
            ) from error
