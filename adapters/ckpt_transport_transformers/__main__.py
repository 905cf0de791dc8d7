"""``python -m ckpt_transport_transformers serve MODEL``: transformers' own server, whose models can be updated."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of transformers; of its options only ``--sink ADDRESS`` is ours."""
    arguments, address = sys.argv[1:], ""
    if "--sink" in arguments:
        place = arguments.index("--sink")
        if place + 1 == len(arguments):
            sys.exit("--sink needs an address, as tcp://10.0.0.5:7500 or ipc:///tmp/engine.sock")
        address = arguments[place + 1]
        del arguments[place : place + 2]
    from transformers.cli.transformers import app

    from ckpt_transport_transformers.serving import make_updatable

    make_updatable(address)
    app(arguments)


if __name__ == "__main__":
    main()
