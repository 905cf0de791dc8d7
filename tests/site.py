"""The transports of tests/conformance/transports, installed for as long as a folder is on the path."""

from __future__ import annotations

import sys
from pathlib import Path

from ckpt_transport.transports.registry import GROUP
from tests.conformance.transports import ReadTransport, SocketTransport

READ, SOCKETS = ReadTransport.name, SocketTransport.name
"""One-sided, and messages; both within a host."""


def make_site(folder: Path) -> str:
    """A folder that, on the path of a process, installs both transports there."""
    info = folder / "tests_of_ckpt_transport-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tests-of-ckpt-transport\nVersion: 1.0\n")
    lines = [f"{kind.name} = tests.conformance.transports:{kind.__name__}" for kind in (ReadTransport, SocketTransport)]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))
    return str(folder)


def use(site: str) -> None:
    """Put it on the path of this process."""
    if site and site not in sys.path:
        sys.path.append(site)
