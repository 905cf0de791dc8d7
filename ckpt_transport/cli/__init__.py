"""This is the command line, ``ckpt-transport``."""

from ckpt_transport.cli.app import main

__all__ = ["main"]
