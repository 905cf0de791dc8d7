"""``python -m tests.sglang.serving OPTIONS`` is SGLang's server, with stand-ins for kernels that this machine has not.

SGLang spawns its processes, each of which imports for half a minute. Here they are forked, when all is imported, but
where there is a GPU: a process that has looked at one cannot be forked.
"""

from __future__ import annotations

import multiprocessing
import sys

import torch

from tests.sglang import standins


def keep_start_method(*_: object, **__: object) -> None:
    """SGLang asks for another, in the place of ``multiprocessing.set_start_method``."""


if __name__ == "__main__":
    assert standins.declared
    if not torch.cuda.is_available():
        multiprocessing.set_start_method("fork")
        multiprocessing.set_start_method = keep_start_method

    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.server_args import prepare_server_args

    launch_server(prepare_server_args(sys.argv[1:]))
