"""What commands work with is imported when one runs, so that ``--help`` answers at once: torch takes seconds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

from ckpt_transport.quiet_imports import imported

Arguments = ParamSpec("Arguments")


def loads_first(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Import what commands work with before ``command`` is called."""

    @functools.wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        imported("ckpt_transport.cli.bringing")
        command(*args, **kwargs)

    return run
