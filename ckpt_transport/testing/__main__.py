"""``python -m ckpt_transport.testing NAME`` or ``MODULE:CLASS``: run the conformance checks, and sum them up."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from ckpt_transport.cli.encoding import write_anything
from ckpt_transport.errors import PluginError
from ckpt_transport.reasons import named_reason
from ckpt_transport.testing.conformance import CHECKS, LONG_CHECKS, run
from ckpt_transport.testing.named import load
from ckpt_transport.testing.processes import launch
from ckpt_transport.testing.threads import launch_in_threads


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 when no check failed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m ckpt_transport.testing", description=__doc__)
    parser.add_argument("transport", help="an installed transport's name, or module:Class")
    names = [check.name for check in (*CHECKS, *LONG_CHECKS)]
    parser.add_argument("--only", action="append", choices=names, metavar="CHECK", help="this check; may be repeated")
    parser.add_argument("--long", action="store_true", help="also run the checks that take minutes and gigabytes")
    parser.add_argument("--deadline", type=float, help="seconds each check may take (default: 30, long ones 600)")
    parser.add_argument("--threads", action="store_true", help="ranks are threads, for a transport within one process")
    options = parser.parse_args(arguments)
    write_anything()
    try:
        report = run(
            load(options.transport),
            only=options.only,
            progress=partial(print, flush=True),
            deadline=options.deadline,
            launcher=launch_in_threads if options.threads else launch,
            checks=(*CHECKS, *LONG_CHECKS) if options.long or options.only else CHECKS,
        )
    except (PluginError, ImportError) as error:
        print(named_reason(error))
        return 1
    for result in report.results:
        if result.explanation:
            print(f"\n{result.explanation}")
    status = 0 if report.ok else 1
    print(f"\n{report.summary}; exit status {status}")
    return status


if __name__ == "__main__":
    sys.exit(main())
