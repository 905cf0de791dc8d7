"""What every answer of the dashboard says to browsers, and which requests get none."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckpt_transport.service.endpoints import is_loopback

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Stands before the application.

    Args:
        app: the application.
        local: it listens on this host only. Then a request must name this host, so that no other site can have its
            own name lead here and read the page.
    """

    def __init__(self, app: ASGIApp, local: bool) -> None:
        self._app, self._local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        host = Request(scope).headers.get("host", "")
        if self._local and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            answer = PlainTextResponse("this page is served to this host only; open it as http://localhost\n", 421)
            await answer(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)


def is_own(request: Request) -> bool:
    """Whether a form was sent by a page of ours, as browsers say."""
    fetched = request.headers.get("sec-fetch-site")
    if fetched is not None:
        return fetched == "same-origin"
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host", "")
