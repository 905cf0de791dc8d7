"""The engine's HTTP interface, on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from examples.llama.inbox import EngineGoneError, Inbox
from examples.llama.messages import Compare, Failed, Generate, Inspect, Reply, Request, encode

LARGEST_BODY = 1 << 20


class Handler(BaseHTTPRequestHandler):
    """Answers ``POST /generate``, ``POST /compare`` and ``GET /parameters``: what each worker serves."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    inbox: Inbox

    def do_GET(self) -> None:
        if self.path == "/parameters":
            self._ask(Inspect())
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"no such page: {self.path}")

    def do_POST(self) -> None:
        kinds: dict[str, type[Generate] | type[Compare]] = {"/generate": Generate, "/compare": Compare}
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            self.close_connection = True
            self._refuse(HTTPStatus.BAD_REQUEST, f"a body of at most {LARGEST_BODY} bytes is needed")
            return
        body = self.rfile.read(int(length))
        kind = kinds.get(self.path)
        if kind is None:
            self._refuse(HTTPStatus.NOT_FOUND, f"no such page: {self.path}")
            return
        try:
            request = msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self._ask(request)

    def _ask(self, request: Request) -> None:
        try:
            replies = self.inbox.ask(request)
        except EngineGoneError as error:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
            return
        refused = next((reply for reply in replies if isinstance(reply, Failed)), None)
        if refused is not None:
            self._reply(HTTPStatus.BAD_REQUEST, refused)
        else:
            self._reply(HTTPStatus.OK, replies[0] if isinstance(request, Generate) else replies)

    def _refuse(self, status: HTTPStatus, error: str) -> None:
        self._reply(status, Failed(error))

    def _reply(self, status: HTTPStatus, content: Reply | Sequence[Reply]) -> None:
        body = encode(content)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Front(ThreadingHTTPServer):
    """Serves from threads of its own until the process ends."""

    daemon_threads = True

    def __init__(self, inbox: Inbox) -> None:
        super().__init__(("127.0.0.1", 0), type("InboxHandler", (Handler,), {"inbox": inbox}))
