"""The entry point of ``ckpt-transport``, and ``python -m ckpt_transport``."""

from __future__ import annotations

import sys

from ckpt_transport.quiet_imports import INTERRUPTED, imported


def main() -> None:
    """Import the command line, which takes tenths of a second, and run it."""
    try:
        imported("ckpt_transport.cli").main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
