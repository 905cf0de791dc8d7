"""The entry point of ``ckpt-transport``, and ``python -m ckpt_transport``."""

from __future__ import annotations

import os
import signal

INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Run a command.

    Its modules take more than a second to load. An interrupt meanwhile ends the process: there is nothing to clean up.
    """
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    from ckpt_transport.cli import main as run

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
