"""Calls one running engine through its HTTP interface."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from ckpt_transport.errors import EngineError
from ckpt_transport.reasons import reason_of
from ckpt_transport.service.endpoints import client_of, proxy_for
from ckpt_transport.service.fleet.driven_engine import DrivenEngine

if TYPE_CHECKING:
    import httpx

CURE = "is it running? wait longer for one that starts: endpoint_timeout, or --endpoint-timeout 600"
KEY_CURE = "wants an API key, and the one that it gets is missing or wrong: set api_key_file to a file that holds it"
POLL_SECONDS = 0.5
CALL_SECONDS = 60.0
TELL_SECONDS = 10.0
"""How often it is said that an engine is still waited for; the first time after half of it."""
logger = logging.getLogger(__name__)


class RequestOptions(TypedDict, total=False):
    """What a route may be asked with, beside its path.

    Attributes:
        params: of the query.
        json: the body, as it is before it is encoded.
        timeout: in seconds, of each of connecting, sending and receiving; by default :data:`CALL_SECONDS`.
    """

    params: Mapping[str, str]
    json: Any
    timeout: float


class HttpEngine(DrivenEngine):
    """An engine at ``url``, as ``http://127.0.0.1:8000``. Every method may raise EngineError.

    A subclass names the engine's routes, through :meth:`_call`.

    Args:
        url: where it is.
        api_key_file: the file with its API key; none when empty. It is read for each request.

    Attributes:
        kind: of engine, as people call it.
        health_route: answers with 200 once it serves.
        route_hint: how it is started so that it has all routes, as part of a sentence.

    Raises:
        ConfigError: the URL makes no sense, or the proxy to it or the key cannot be used.
    """

    kind: str
    health_route = "/health"
    route_hint: str

    def __init__(self, url: str, api_key_file: str = "") -> None:
        self.name = self.url = url.rstrip("/")
        self._client = client_of(self.url, CALL_SECONDS, api_key_file)
        proxy = proxy_for(self.url)
        self._through = f", through {proxy}" if proxy is not None else ""
        self._threads = ThreadPoolExecutor(2, "ckpt-transport-http")

    def wait(self, timeout: float) -> None:
        """Wait until it serves."""
        import httpx

        deadline, told = time.monotonic() + timeout, time.monotonic() - TELL_SECONDS / 2
        while True:
            try:
                answer = self._client.get(self.health_route, timeout=5.0)
                if answer.status_code == HTTPStatus.UNAUTHORIZED:
                    raise EngineError(f"{self.url} {KEY_CURE}{self._through}")
                if not (reason := self._why_unhealthy(answer.status_code)):
                    return
            except httpx.HTTPError as error:
                reason = f"{reason_of(error)}{self._through}"
            if time.monotonic() > deadline:
                raise EngineError(f"{self.url} is not healthy after {timeout:g} s: {reason}; {CURE}")
            if time.monotonic() > told + TELL_SECONDS:
                told = time.monotonic()
                logger.warning("waiting up to %.0f s more for %s: %s", deadline - told, self.url, reason)
            time.sleep(POLL_SECONDS)

    def _why_unhealthy(self, status: int) -> str:
        """What is wrong with an engine whose health route answers with ``status``; empty for nothing."""
        return "" if status == HTTPStatus.OK else f"it answers {status}{self._through}"

    def renew(self, version: str) -> bool:
        """See :meth:`DrivenEngine.renew`: all of it at once."""
        beside = [self._threads.submit(self.reset_caches)]
        if version:
            beside.append(self._threads.submit(self.label, version))
        try:
            held = self.is_paused()
        finally:
            wait(beside)
        for each in beside:
            each.result()
        return held

    def _call(self, method: str, path: str, **options: Unpack[RequestOptions]) -> dict[str, Any]:
        answer = self._answer(method, path, **options)
        try:
            found: dict[str, Any] = answer.json() if answer.content else {}
        except ValueError as error:
            raise EngineError(f"{self.url}{path} does not answer in JSON{self._through}; is it {self.kind}?") from error
        return found

    def _answer(self, method: str, path: str, **options: Unpack[RequestOptions]) -> httpx.Response:
        answer = self._ask(method, path, **options)
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise NoRouteError(
                f"{self.url} has no {path}: {self.route_hint}",
                said=answer.text[:500] if '"error"' in answer.text else "",
            )
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            raise EngineError(f"{self.url}{path} {KEY_CURE}{self._through}")
        if answer.is_error:
            said = f"{answer.status_code}{self._through}: {answer.text[:500]}"
            raise EngineError(f"{self.url}{path} failed with {said}")
        return answer

    def _ask(self, method: str, path: str, **options: Unpack[RequestOptions]) -> httpx.Response:
        """What a route answers, be it an error."""
        import httpx

        try:
            return self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            reason = f"{reason_of(error)}{self._through}"
            raise EngineError(f"{self.url}{path} does not answer: {reason}") from error

    def close(self) -> None:
        self._threads.shutdown()
        self._client.close()


class NoRouteError(EngineError):
    """The server has no such route; or it has, and finds something else not.

    Attributes:
        said: what the route has said; empty where there is none.
    """

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said
