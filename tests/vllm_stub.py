"""As much of a vLLM server as a fleet talks to, around the real sink of a plain module."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import torch

from ckpt_transport import Config, Sink
from ckpt_transport_torch import Attachment, TorchEngine
from ckpt_transport_vllm.server import EXTENSION
from tests.fleet import model


class StubServer:
    """A server with one sink.

    Args:
        api_key: what requests to any of its routes must carry; nothing when empty.
        module: is served; by default the model of ``seed``.

    Attributes:
        attached: the module that is served, and its sink.
        paused: whether requests wait.
        label: what the server calls its weights.
        asked: the paths that were posted to, in order.
    """

    def __init__(
        self,
        config: Config,
        seed: int = 1,
        engine: type[TorchEngine] = TorchEngine,
        api_key: str = "",
        module: torch.nn.Module | None = None,
    ) -> None:
        self.model = model(seed) if module is None else module
        way_in = engine(self.model)
        self.attached = Attachment(self.model, way_in, Sink(way_in, version=f"v{seed}", config=config).start())
        self.paused, self.label = False, f"v{seed}"
        self.asked: list[str] = []
        self.api_key = api_key
        stub = self

        class Routes(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = {
                    "/server_info": {"vllm_config": {"parallel_config": {"worker_extension_cls": EXTENSION}}},
                    "/get_world_size": {"world_size": 1},
                    "/weight_info": {"weight_version": stub.label},
                    "/is_paused": {"is_paused": stub.paused},
                }
                self._answer(found.get(urlsplit(self.path).path, {}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                self._answer(stub.post(urlsplit(self.path).path, body) if self._is_admitted() else {})

            def _is_admitted(self) -> bool:
                return not stub.api_key or self.headers.get("Authorization") == f"Bearer {stub.api_key}"

            def _answer(self, found: Any) -> None:
                admitted = self._is_admitted()
                encoded = json.dumps(found if admitted else {"error": "Unauthorized"}).encode()
                self.send_response(200 if admitted else 401)
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Routes)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        self.asked.append(path)
        match path:
            case "/pause" | "/resume":
                self.paused = path == "/pause"
            case "/update_weight_version":
                self.label = body["new_version"]
            case "/collective_rpc":
                address = self.attached.address
                found = {"error": "", "address": address, "keeper": address, "tainted": self.attached.tainted}
                return {"results": [found]}
        return {}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.attached.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def urls(servers: Sequence[StubServer]) -> list[str]:
    return [server.url for server in servers]
