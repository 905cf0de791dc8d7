"""Given a proxy in the environment, when an engine is asked, then the right one is asked, and the proxy is named."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ckpt_transport.errors import ConfigError, EngineError
from ckpt_transport.service.endpoints import client_of, is_loopback, proxy_for
from ckpt_transport_vllm.server import VllmServer

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
SOCKS = "socks5://127.0.0.1:1"
PATIENCE = 120.0


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Engine(BaseHTTPRequestHandler):
    """Healthy."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class Broken(Engine):
    """A proxy that reaches nobody."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()

    do_POST = do_GET


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("proxy", ["http", SOCKS])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_given_an_engine_on_loopback_then_no_proxy_is_asked(
    monkeypatch: pytest.MonkeyPatch, host: str, variable: str, proxy: str
) -> None:
    with listening(Engine) as port, listening(Broken) as broken:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{broken}" if proxy == "http" else proxy)
        with VllmServer(f"http://{host}:{port}") as server:
            server.wait(PATIENCE)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("LOCALHOST.", True),
        ("one.localhost", True),
        ("10.0.0.7", False),
        ("localhost.example", False),
        ("fe80::1", False),
        ("", False),
    ],
)
def test_given_addresses_then_only_this_host_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_given_an_engine_elsewhere_then_its_proxy_is_asked_and_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with listening(Broken) as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://somebody:password@127.0.0.1:{port}")
        said = rf"through the proxy http://127\.0\.0\.1:{port} \(HTTP_PROXY in the environment\)"
        with VllmServer("http://engine.invalid:8000") as server:
            with pytest.raises(EngineError, match=rf"it answers 503, {said}") as caught:
                server.wait(0.0)
            assert "password" not in str(caught.value)
            with pytest.raises(EngineError, match=rf"failed with 503, {said}"):
                server.resume()
    with (
        VllmServer("http://engine.invalid:8000") as server,
        pytest.raises(EngineError, match=rf"does not answer: .*, {said}"),
    ):
        server.resume()


@pytest.mark.skipif(importlib.util.find_spec("socksio") is not None, reason="socksio is installed")
def test_given_a_socks_proxy_without_its_package_then_the_error_says_what_to_install_or_unset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("all_proxy", SOCKS)
    with pytest.raises(ConfigError, match=r"through the proxy socks5://127\.0\.0\.1:1 \(all_proxy .*httpx\[socks\]"):
        VllmServer("http://10.0.0.7:8000")


@pytest.mark.parametrize("url", ["http://10.0.0.7:port", "http://[::1", "http://10.0.0.7:99999", "10.0.0.7:8000"])
def test_given_no_url_then_it_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigError, match=r"give a URL as http://127\.0\.0\.1:8000"):
        client_of(url, 1.0)


def test_given_a_kind_of_proxy_that_nobody_knows_then_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "gopher://10.0.0.1")
    with pytest.raises(ConfigError, match=r"http://10\.0\.0\.7:8000 cannot be asked .*gopher"):
        client_of("http://10.0.0.7:8000", 1.0)


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({"http_proxy": "http://p:1"}, "http://10.0.0.7:8000", "http://p:1"),
        ({"http_proxy": "p:1"}, "http://10.0.0.7:8000", "http://p:1"),
        ({"http_proxy": "http://p:1"}, "https://10.0.0.7:8000", None),
        ({"https_proxy": "http://p:1", "ALL_PROXY": "http://p:2"}, "https://10.0.0.7", "http://p:1"),
        ({"ALL_PROXY": "http://p:2"}, "https://10.0.0.7", "http://p:2"),
        ({"http_proxy": "http://p:1", "HTTP_PROXY": "http://p:2"}, "http://10.0.0.7", "http://p:1"),
        ({"http_proxy": "http://p:1", "no_proxy": "10.0.0.7"}, "http://10.0.0.7:8000", None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "10.0.0.7:8000"}, "http://10.0.0.7:8000", None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "10.0.0.7:8000"}, "http://10.0.0.7:8001", "http://p:1"),
        ({"http_proxy": "http://p:1", "no_proxy": "example.org"}, "http://gpu.example.org", None),
        ({"http_proxy": "http://p:1", "no_proxy": "*"}, "http://10.0.0.7:8000", None),
        ({"http_proxy": "http://p:1"}, "http://[::1]:8000", None),
        ({"http_proxy": "http://p:1"}, "http://[fd00::7]:8000", "http://p:1"),
        ({}, "http://10.0.0.7:8000", None),
    ],
)
def test_given_proxies_then_they_are_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], url: str, expected: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_for(url)
    assert (found.url if found is not None else None) == expected
    if found is not None:
        assert environment[found.variable].endswith(found.url.removeprefix("http://"))
