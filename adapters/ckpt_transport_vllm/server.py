"""Calls one running vLLM server through its HTTP interface."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ckpt_transport import EngineError
from ckpt_transport.spi import client_of, proxy_for

if TYPE_CHECKING:
    import httpx

EXTENSION = "ckpt_transport_vllm.WorkerExtension"
CURE = "is it running? wait longer for one that starts: endpoint_timeout, or --endpoint-timeout 600"
KEY_CURE = "wants an API key, and the one that it gets is missing or wrong: set api_key_file to a file that holds it"
POLL_SECONDS = 0.5
CALL_SECONDS = 60.0
TELL_SECONDS = 10.0
"""How often it is said that a server is still waited for; the first time after half of it."""
logger = logging.getLogger(__name__)


class VllmServer:
    """A server at ``url``, as ``http://127.0.0.1:8000``. Every method may raise EngineError.

    Args:
        url: where it is.
        api_key_file: the file with its API key; none when empty. It is read for each request.

    Raises:
        ConfigError: the URL makes no sense, or the proxy to it or the key cannot be used.
    """

    def __init__(self, url: str, api_key_file: str = "") -> None:
        self.url = url.rstrip("/")
        self._client = client_of(self.url, CALL_SECONDS, api_key_file)
        proxy = proxy_for(self.url)
        self._through = f", through {proxy}" if proxy is not None else ""

    # -- what it is -----------------------------------------------------------------------------------------------

    def wait(self, timeout: float) -> None:
        """Wait until it serves."""
        import httpx

        deadline, told = time.monotonic() + timeout, time.monotonic() - TELL_SECONDS / 2
        while True:
            try:
                answer = self._client.get("/health", timeout=5.0)
                if answer.status_code == HTTPStatus.OK:
                    return
                if answer.status_code == HTTPStatus.UNAUTHORIZED:
                    raise EngineError(f"{self.url} {KEY_CURE}{self._through}")
                reason = f"it answers {answer.status_code}{self._through}"
            except httpx.UnsupportedProtocol as error:
                raise EngineError(f"{self.url} is no URL of an engine; give one as http://127.0.0.1:8000") from error
            except httpx.HTTPError as error:
                reason = f"{str(error) or type(error).__name__}{self._through}"
            if time.monotonic() > deadline:
                raise EngineError(f"{self.url} is not healthy after {timeout:g} s: {reason}; {CURE}")
            if time.monotonic() > told + TELL_SECONDS:
                told = time.monotonic()
                logger.warning("waiting up to %.0f s more for %s: %s", deadline - told, self.url, reason)
            time.sleep(POLL_SECONDS)

    def configuration(self) -> Mapping[str, Any]:
        """vLLM's own configuration."""
        answer = self._call("GET", "/server_info", params={"config_format": "json"})
        configuration: Mapping[str, Any] = answer["vllm_config"]
        return configuration

    def world_size(self) -> int:
        return int(self._call("GET", "/get_world_size")["world_size"])

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
        self._call("POST", "/pause", params={"mode": mode, "clear_cache": "false"}, timeout=timeout)

    def resume(self) -> None:
        self._call("POST", "/resume")

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
        """Call a method of the worker extension on every rank; the answers by rank."""
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
        self._adapters("unload", {"lora_name": name}, CALL_SECONDS)

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

    # -- talking --------------------------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        timeout: float = CALL_SECONDS,
    ) -> dict[str, Any]:
        answer = self._answer(method, path, params, json, timeout)
        try:
            found: dict[str, Any] = answer.json() if answer.content else {}
        except ValueError as error:
            raise EngineError(f"{self.url}{path} does not answer in JSON{self._through}; is it vLLM?") from error
        return found

    def _answer(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        timeout: float = CALL_SECONDS,
    ) -> httpx.Response:
        import httpx

        try:
            answer = self._client.request(method, path, params=params, json=json, timeout=timeout)
        except httpx.HTTPError as error:
            reason = f"{str(error) or type(error).__name__}{self._through}"
            raise EngineError(f"{self.url}{path} does not answer: {reason}") from error
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise NoRouteError(
                f"{self.url} has no {path}: start vLLM with VLLM_SERVER_DEV_MODE=1 in its environment, and reach it "
                "from a trusted network only",
                said=answer.text[:500] if '"error"' in answer.text else "",
            )
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            raise EngineError(f"{self.url}{path} {KEY_CURE}{self._through}")
        if answer.is_error:
            said = f"{answer.status_code}{self._through}: {answer.text[:500]}"
            raise EngineError(f"{self.url}{path} failed with {said}")
        return answer

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NoRouteError(EngineError):
    """The server has no such route; or it has, and finds something else not.

    Attributes:
        said: what the route has said; empty where there is none.
    """

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said
