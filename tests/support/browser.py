"""Headless Chromium, driven through its DevTools protocol over pipes: https://chromedevtools.github.io/devtools-protocol/."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.patience import DEADLINE

CHROMIUM = shutil.which("chromium")
MISSING = "chromium is not installed: apt-get install chromium"
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe"),
)


class Page:
    """One page of a browser.

    Attributes:
        complaints: what the browser has said of pages: errors of scripts, and what their policy has kept out.
    """

    def __init__(self, commands: int, events: int) -> None:
        self._commands, self._events, self._unread = commands, events, b""
        self._numbers = itertools.count(1)
        self._session = ""
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol, and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (received := self._receive()).get("id") != number:
            self._note(received)
        assert "error" not in received, received["error"]
        return received["result"]

    def _note(self, event: Any) -> None:
        said = event.get("params", {})
        match event.get("method"):
            case "Log.entryAdded" if said["entry"]["level"] == "error":
                self.complaints.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
            case "Runtime.exceptionThrown":
                self.complaints.append(said["exceptionDetails"]["text"])

    def _receive(self) -> Any:
        until = time.monotonic() + DEADLINE
        while b"\0" not in self._unread:
            assert select.select([self._events], [], [], max(until - time.monotonic(), 0))[0], (
                "chromium does not answer"
            )
            read = os.read(self._events, 1 << 20)
            assert read, "chromium has ended"
            self._unread += read
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, url: str) -> None:
        """Go to a page, and wait until it is there."""
        self.call("Page.navigate", url=url)
        self.wait_for(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true in the page, which may go to another one meanwhile."""
        until = time.monotonic() + DEADLINE
        while True:
            with suppress(AssertionError):
                if self.evaluate(condition):
                    return
            assert time.monotonic() < until, f"{condition} stays false in\n{self.text()}"
            time.sleep(0.05)

    def text(self) -> str:
        """What a person reads there."""
        return str(self.evaluate("document.body.innerText"))

    def click(self, selector: str) -> None:
        """Press a mouse button in the middle of an element, or of its first line."""
        place = f"document.querySelector({json.dumps(selector)}).getClientRects()[0]"
        self.evaluate(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        x, y = (self.evaluate(f"{place}.{low} + {place}.{size} / 2") for low, size in (("x", "width"), ("y", "height")))
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def scheme(self, name: str) -> None:
        """Prefer the ``light`` or the ``dark`` one."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def size(self, width: int, height: int) -> None:
        """Make the window so large, in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self) -> bytes:
        """What is in the window, as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browser() -> Iterator[Page]:
    """A browser with one page, until the block ends."""
    assert CHROMIUM is not None, MISSING
    theirs_in, commands = os.pipe()
    events, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The protocol's pipes are descriptors 3 and 4.
        line = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        process = subprocess.Popen(
            ["bash", "-c", line, CHROMIUM, *OPTIONS, f"--user-data-dir={profile}"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=(log := (Path(profile) / "stderr").open("wb")),
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            page = Page(commands, events)
            yield page
            with suppress(AssertionError, OSError):
                page.call("Browser.close")
            process.wait(DEADLINE)
        finally:
            log.close()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait(DEADLINE)
            os.close(commands)
            os.close(events)
