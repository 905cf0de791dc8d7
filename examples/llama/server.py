"""The inference server: an HTTP front on this machine, and the workers behind it.

``python -m examples.llama.server --directory CHECKPOINT`` prints one line of JSON when it serves, and ends when
its standard input does.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec

from examples.llama.protocol import Compare, Failed, Generate, Health, Inspect, Reply, Request, Serving, encode
from examples.llama.team import Team, TeamError

LARGEST_BODY = 1 << 20


class Handler(BaseHTTPRequestHandler):
    """
    ``POST /generate`` {"prompt": [ids], "max_tokens": n}; ``POST /compare`` {"directory": path}; ``GET /health``;
    ``GET /version`` and ``GET /parameters``: what each worker serves.
    """

    protocol_version = "HTTP/1.1"
    timeout = 60
    team: Team

    def do_GET(self) -> None:
        match self.path:
            case "/health":
                self._health()
            case "/version" | "/parameters":
                self._ask(Inspect())
            case _:
                self._reply(HTTPStatus.NOT_FOUND, Failed(f"no such page: {self.path}"))

    def do_POST(self) -> None:
        kinds: dict[str, type[Generate] | type[Compare]] = {"/generate": Generate, "/compare": Compare}
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            self.close_connection = True
            self._reply(HTTPStatus.BAD_REQUEST, Failed(f"a body of at most {LARGEST_BODY} bytes is needed"))
            return
        body = self.rfile.read(int(length))
        kind = kinds.get(self.path)
        if kind is None:
            self._reply(HTTPStatus.NOT_FOUND, Failed(f"no such page: {self.path}"))
            return
        try:
            request = msgspec.convert(msgspec.json.decode(body, type=dict[str, object]) | {"type": kind.__name__}, kind)
        except msgspec.DecodeError as error:
            self._reply(HTTPStatus.BAD_REQUEST, Failed(str(error)))
            return
        self._ask(request)

    def _ask(self, request: Request) -> None:
        try:
            replies = self.team.ask(request)
        except TeamError as error:
            self._reply(HTTPStatus.SERVICE_UNAVAILABLE, Failed(str(error)))
            return
        failed = next((reply for reply in replies if isinstance(reply, Failed)), None)
        if failed is not None:
            self._reply(HTTPStatus.BAD_REQUEST, failed)
        else:
            self._reply(HTTPStatus.OK, replies[0] if isinstance(request, Generate) else replies)

    def _health(self) -> None:
        try:
            self.team.check()
        except TeamError as error:
            self._reply(HTTPStatus.SERVICE_UNAVAILABLE, Health(False, str(error)))
        else:
            self._reply(HTTPStatus.OK, Health(True))

    def _reply(self, status: HTTPStatus, content: Reply | tuple[Reply, ...] | Health) -> None:
        body = encode(content)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Front(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, team: Team) -> None:
        super().__init__(("127.0.0.1", 0), type("TeamHandler", (Handler,), {"team": team}))


def main() -> None:
    """Serve until standard input ends, or a signal comes."""
    parser = argparse.ArgumentParser(description="An inference server whose weights can be updated while it serves.")
    parser.add_argument("--directory", type=Path, required=True, help="the checkpoint to start with")
    parser.add_argument("--version", default="v1", help="its name")
    parser.add_argument("--world-size", type=int, default=2, help="tensor-parallel workers")
    arguments = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    team = Team(arguments.directory, arguments.version, arguments.world_size)
    try:
        with Front(team) as front:
            threading.Thread(target=front.serve_forever, daemon=True).start()
            print(encode(Serving(front.server_port, team.sinks, team.processes)).decode(), flush=True)
            sys.stdin.buffer.read()
            front.shutdown()
    finally:
        team.close()


if __name__ == "__main__":
    main()
