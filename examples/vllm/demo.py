"""The demonstration: a vLLM that serves is updated, twice, and compared with one that loaded the weights from disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from ckpt_transport import CkptTransportError, Config, ParameterServer
from ckpt_transport.checkpoint.directory import from_directory
from ckpt_transport_vllm.fleet import VllmFleet
from examples.shared.display import Display
from examples.vllm import report
from examples.vllm.clients import Clients
from examples.vllm.result import Answers, Updated
from tests.support.vllm_server import Serve, ServeError

FAMILY, HIDDEN, LAYERS = "qwen3", 512, 4
SEEDS = {"v1": 1, "v2": 2}
BUCKET_BYTES = 2 << 20
ENOUGH_REQUESTS = 24
END_SECONDS = 5.0
"""For how long a server that failed may still be seen running."""


def run(keep: Path | None = None) -> int:
    """Show two updates of a running vLLM.

    Args:
        keep: the directory to leave the checkpoints and what vLLM wrote in; by default they are removed.

    Returns: the exit status: 0 when everything held, 1 when something did not.
    """
    display = Display()
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ckpt-transport-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            problems = _Demo(display, folder).show()
        except (ServeError, CkptTransportError, httpx.HTTPError, OSError) as error:
            display.heading("The demonstration failed")
            display.line(f"{type(error).__name__}: {error}", "bold red")
            for note in getattr(error, "__notes__", ()):
                display.line(note)
            display.line(f"all that vLLM wrote is in {keep}" if keep else "--keep DIR keeps all that vLLM wrote")
            return 1
    return 1 if problems else 0


class _Demo:
    """The scenes, in order."""

    def __init__(self, display: Display, folder: Path) -> None:
        self._display, self._folder = display, folder

    def show(self) -> list[str]:
        """
        Returns: what did not hold.

        Raises:
            CkptTransportError: an update failed.
            ServeError, httpx.HTTPError: vLLM failed.
        """
        display = self._display
        display.heading("Two versions of a model, and what a vLLM says that loads v2 from disk")
        self._write()
        with self._serve("v2") as server:
            new = Answers.of(server)
        display.line(f"{len(new.checksums)} checksums of its parameters and {len(new.tokens)} completions are kept")

        display.heading("A vLLM that loads v1, and is updated")
        with self._serve("v1") as server:
            old = Answers.of(server)
            problems = [
                *self._update(server, "v1", "v2", "shm", old, new),
                *self._update(server, "v2", "v1", "gloo", new, old),
            ]
        report.conclude(display, problems)
        return problems

    def _write(self) -> None:
        """Both checkpoints, in a process that ends: what writes them is large."""
        log = self._folder / "write.log"
        command = [sys.executable, "-m", "tests.support.tiny_models", str(self._folder)]
        command += [f"--family={FAMILY}", f"--hidden={HIDDEN}", f"--layers={LAYERS}"]
        command += [f"--seed={seed}" for seed in SEEDS.values()]
        with (
            self._display.waiting("writing v1 and v2"),
            log.open("wb") as output,
            tempfile.TemporaryDirectory(prefix="ckpt-transport-demo-") as scratch,
        ):
            environment = {**os.environ, "TMPDIR": scratch}
            status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment).returncode
        if status:
            raise ServeError(f"the checkpoints could not be written:\n{log.read_text(errors='replace')[-2000:]}")
        tensors = [entry.spec for file in from_directory(self._checkpoint("v1")) for entry in file.tensors]
        mebibytes = sum(spec.nbytes for spec in tensors) / 2**20
        self._display.line(f"{len(tensors)} tensors and {mebibytes:,.1f} MiB each, of a random {FAMILY}")

    def _checkpoint(self, version: str) -> Path:
        return self._folder / f"{FAMILY}-{SEEDS[version]}"

    @contextmanager
    def _serve(self, version: str) -> Iterator[Serve]:
        """A server that loaded ``version`` from disk; when it ends too early, that is the error."""
        with Serve(self._checkpoint(version), self._folder / f"vllm-{version}.log") as server:
            with self._display.waiting(f"vLLM loads {version}"):
                server.wait()
            try:
                yield server
            except (ServeError, CkptTransportError, httpx.HTTPError) as error:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = server.process.wait(END_SECONDS)
                    reason = f"{error}\nvLLM ended with status {status}, and wrote last:\n{server.last_words()}"
                    raise ServeError(reason) from error
                raise

    def _update(
        self, server: Serve, old: str, new: str, transport: str, before: Answers, expected: Answers
    ) -> list[str]:
        """Bring ``new`` to the server while clients keep it busy, and show that; what did not hold."""
        display = self._display
        display.heading(f"From {old} to {new} over {transport}, under way with requests")
        config = Config.load(transport=transport, bucket_bytes=BUCKET_BYTES)
        moments: list[float] = []
        with (
            ParameterServer(config) as source,
            VllmFleet([server.url], config, pause="keep") as fleet,
            Clients(server.url) as clients,
        ):
            source.register(new, directory=self._checkpoint(new))
            clients.wait(ENOUGH_REQUESTS)
            for failure in (each.error for each in clients.completions() if each.error):
                raise ServeError(f"a completion failed before the update: {failure}")
            began = time.monotonic()
            with display.progress(f"update to {new}") as progress:

                def follow(done: int, total: int) -> None:
                    moments.append(time.monotonic())
                    progress(done, total)

                done = fleet.update(source, new, follow)
                assert done is not None, "the only source leads"
            ended = time.monotonic()
            clients.wait(ENOUGH_REQUESTS, since=ended)
            (served,) = fleet.versions()
        updated = Updated(
            old=old,
            new=new,
            transport=transport,
            done=done,
            served=served,
            completions=clients.completions(),
            began=began,
            held=moments[0],
            ended=ended,
            before=before,
            after=Answers.of(server),
            expected=expected,
        )
        report.show(display, updated)
        return list(updated.problems())
