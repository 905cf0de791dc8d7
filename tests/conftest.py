"""What holds for every test."""

from __future__ import annotations

import signal

pytest_plugins = ["tests.deadlines"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells have background jobs ignore interrupts, and tests send them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
