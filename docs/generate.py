"""Write the pages under ``docs/reference`` from the code: settings, commands, errors, interfaces, messages.

``python docs/generate.py`` writes them; ``python docs/generate.py --check`` only says which are not current, and exits
with 1 when one is not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from docs import engines
from docs.commands_page import command_line
from docs.errors_page import error_tree
from docs.python_pages import api, for_authors
from docs.settings_page import configuration
from docs.wire_page import wire_messages

REFERENCE = Path(__file__).parent / "reference"

PYTHON = (
    ("ckpt_transport", ""),
    ("ckpt_transport_fp8", ""),
    ("ckpt_transport_sglang", ""),
    ("ckpt_transport_torch", ""),
    ("ckpt_transport_transformers", ""),
    ("ckpt_transport_vllm", ""),
)
PLANNING = (
    (
        "ckpt_transport.planning",
        "plan verify explain Settings Plan Manifest TensorSpec Conversion Topology RankInfo Role",
    ),
)
TESTING = (("ckpt_transport.testing", ""), ("ckpt_transport.testing.engine", ""))


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say what is not current")
    only_check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        path, text = REFERENCE / name, make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path)
        if not only_check:
            path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{path.relative_to(REFERENCE.parent.parent)} {'is not current' if only_check else 'written'}")
    return int(bool(stale and only_check))


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "commands.md": command_line,
    "errors.md": error_tree,
    "messages.md": wire_messages,
    "python.md": api("Python interface", PYTHON),
    "spi.md": for_authors,
    "planning.md": api("Planning", PLANNING),
    "testing.md": api("Testing", TESTING),
    "engines.md": engines.rendered,
}

if __name__ == "__main__":
    sys.exit(main())
