"""The entry point of ``ckpt-transport``, and ``python -m ckpt_transport``."""

from __future__ import annotations

from ckpt_transport.cli import main

if __name__ == "__main__":
    main()
