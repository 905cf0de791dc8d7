"""A small inference engine as somebody else might have written it. It knows nothing of updates.

It completes sentences of numbers by a module, answers over HTTP, can be paused, keeps answers, has a label for its
weights, and lets plugins add routes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import torch


class Engine:
    """Serves a module until :meth:`close`.

    Args:
        model: what is served.
        label: what its weights are called.

    Attributes:
        url: where.
        kept: the answers to earlier requests.
        plugins: routes of others, by their path.
    """

    def __init__(self, model: torch.nn.Module, label: str) -> None:
        self.model, self.label = model, label
        self.kept: dict[str, Any] = {}
        self.plugins: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self._serving = threading.Condition()
        self._running, self._paused = 0, False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._routes())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="acme")
        self._thread.start()

    def generate(self, prompt: list[float]) -> Any:
        """Run the model once for a prompt, unless its answer is kept."""
        with self._serving:
            self._serving.wait_for(lambda: not self._paused)
            self._running += 1
        try:
            key = json.dumps(prompt)
            if key not in self.kept:
                with torch.no_grad():
                    self.kept[key] = self.model(torch.tensor(prompt, dtype=torch.float64)).tolist()
            return self.kept[key]
        finally:
            with self._serving:
                self._running -= 1
                self._serving.notify_all()

    def pause(self, timeout: float) -> None:
        """Let no further request begin, and wait until those that run have ended."""
        with self._serving:
            self._paused = True
            if not self._serving.wait_for(lambda: self._running == 0, timeout):
                raise TimeoutError(f"a request has not ended within {timeout:g} s")

    def resume(self) -> None:
        with self._serving:
            self._paused = False
            self._serving.notify_all()

    def _answer(self, path: str, body: dict[str, Any]) -> Any:
        match path:
            case "/health":
                return {}
            case "/generate":
                return self.generate(body["prompt"])
            case "/pause":
                return self.pause(body["timeout"])
            case "/resume":
                return self.resume()
            case "/status":
                return {"paused": self._paused, "label": self.label}
            case "/label":
                self.label = body["label"]
            case "/forget":
                self.kept = {}
            case _:
                return self.plugins[path](body)
        return None

    def _routes(self) -> type[BaseHTTPRequestHandler]:
        engine = self

        class Routes(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                try:
                    status, answer = 200, engine._answer(self.path, body)
                except KeyError:
                    status, answer = 404, None
                except Exception as error:
                    status, answer = 500, str(error)
                encoded = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

            do_GET = do_POST

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        return Routes

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
