"""A fleet in this process, and the page that shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from ckpt_transport import Config, ParameterServer, Sink
from ckpt_transport.dashboard import FleetWatch, PageServer, Rollback, make_app
from ckpt_transport_torch import TorchEngine
from tests.fleet import model, weights
from tests.patience import DEADLINE, PATIENT

TOKEN = "open sesame, open sesame"


@dataclass
class Shown:
    """A fleet that is shown.

    Attributes:
        sinks: of the fleet.
        server: brings versions to them.
        client: asks the page.
        url: of the page.
    """

    sinks: list[Sink]
    server: ParameterServer
    client: httpx.Client
    url: str

    def bring(self, version: str, seed: int = 2) -> None:
        """Bring a version to the sinks."""
        self.server.publish(version, weights(seed), [sink.address for sink in self.sinks])

    def page(self, path: str = "/live") -> str:
        """A page, which must be there."""
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text


@contextmanager
def shown(
    *engines: TorchEngine,
    history: Path | None = None,
    token: str = "",
    others: Sequence[str] = (),
    version: str = "v1",
    patience: float = DEADLINE,
) -> Iterator[Shown]:
    """Show a fleet until the block ends.

    Args:
        engines: of its sinks; by default of two.
        history: where updates are kept.
        token: for rollbacks; the page only shows without.
        others: addresses of members that are named, too.
        version: what the sinks serve at first.
        patience: seconds that each may take to answer.
    """
    settings = {**PATIENT, "commit": "staged", "transport": "shm", "history": "" if history is None else str(history)}
    config = Config.load(**settings)
    with ExitStack() as stack:
        made = engines or tuple(TorchEngine(model(1), "", f"sink {number}") for number in range(2))
        sinks = [Sink(engine, "", version, config).start() for engine in made]
        for sink in sinks:
            stack.callback(sink.close)
        server = stack.enter_context(ParameterServer(config, rank=0, world_size=1))
        addresses = [sink.address for sink in sinks]
        rollback = Rollback(token.encode(), lambda: server.rollback(addresses).lost) if token else None
        watch = FleetWatch((*addresses, *others), config, patience=patience)
        page = PageServer("127.0.0.1:0")
        stack.callback(page.close)
        stack.enter_context(page.beside(make_app(watch, config.history, rollback, local=page.local)))
        client = stack.enter_context(httpx.Client(base_url=page.url, timeout=DEADLINE))
        yield Shown(sinks, server, client, page.url)
