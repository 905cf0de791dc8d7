"""Take the pictures of the dashboard in ``docs/how-to/dashboard.md``, of a fleet that really runs on this machine.

``python docs/screenshot.py`` writes them; it needs Chromium.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ckpt_transport import Config, ParameterServer, UpdateAbortedError  # noqa: E402
from ckpt_transport.dashboard import FleetWatch, PageServer, Rollback, make_app  # noqa: E402
from tests.fleet import SinkSpec, fleet, weights  # noqa: E402
from tests.patience import DEADLINE, PATIENT  # noqa: E402
from tests.support.browser import browser  # noqa: E402

SHAPE = {"layers": 24, "width": 1024}
PICTURES = ROOT / "docs" / "how-to"
WIDTH = 1120
RATE = "[...document.querySelectorAll('.card tbody')].some(rows => !rows.innerText.includes(' 0 B/s'))"


def bring(sinks: list[str], history: Path, step: int, **settings: object) -> None:
    """Bring a version to the fleet, as a trainer does."""
    config = Config.load(**{**PATIENT, "commit": "staged", "history": str(history), **settings})
    with ParameterServer(config, rank=0, world_size=1) as trainer:
        trainer.publish(f"step-{step}", weights(step, **SHAPE), sinks)


def main() -> None:
    """Run a fleet, and look at it."""
    with tempfile.TemporaryDirectory() as folder:
        history = Path(folder) / "history.jsonl"
        specs = [SinkSpec(model=SHAPE, address=f"ipc://{folder}/engine-{number}.sock") for number in range(4)]
        with fleet(*specs) as engines, browser() as page:
            sinks = [engine.address for engine in engines]
            for step in range(41, 47):
                bring(sinks, history, step, transport="gloo" if step % 3 else "shm")
            try:
                bring(sinks, history, 47, update_timeout=0.01)
            except UpdateAbortedError as error:
                print(error)
            server = PageServer("127.0.0.1:0")
            watch = FleetWatch(sinks, Config.load(**PATIENT))
            app = make_app(watch, str(history), Rollback(b"", lambda: ()), local=True)
            with server.beside(app):
                page.scheme("light")
                page.size(WIDTH, 1000)
                page.open(f"{server.url}/")
                slow = {"transport": "gloo", "bucket_bytes": "48KiB", "ring_depth": 2}
                update = threading.Thread(target=bring, args=(sinks, history, 48), kwargs=slow)
                update.start()
                page.wait_for(RATE)
                (PICTURES / "dashboard.png").write_bytes(page.picture())
                update.join(DEADLINE)
                bring(sinks, history, 49, transport="gloo")
                page.scheme("dark")
                page.wait_for("document.querySelector('h1').innerText === 'All 4 serve step-49'")
                page.click(".past tbody a")
                page.wait_for("location.pathname.startsWith('/updates/') && document.readyState === 'complete'")
                page.size(WIDTH, 1040)
                (PICTURES / "dashboard-update.png").write_bytes(page.picture())
            server.close()


if __name__ == "__main__":
    main()
