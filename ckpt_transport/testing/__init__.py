"""Authors of transports test them with this package, and so does whoever tests what uses a transport.

* :mod:`~ckpt_transport.testing.conformance`: does a transport keep every promise of the interface?
  ``python -m ckpt_transport.testing NAME`` asks on the command line.
* :class:`LoopbackTransport`: the reference transport, inside one process.
* :class:`LatencyTransport`, :class:`FaultTransport`: go around any transport.
* :func:`launch`: runs a function in several processes and never hangs.

Needs no test framework.
"""

from ckpt_transport.testing.check import Check
from ckpt_transport.testing.conformance import CHECKS, LONG_CHECKS, run
from ckpt_transport.testing.context import Failure, HangError, RankContext, RankOutcome
from ckpt_transport.testing.loopback import LoopbackTransport
from ckpt_transport.testing.processes import Launcher, launch
from ckpt_transport.testing.report import CheckResult, ConformanceError, ConformanceReport
from ckpt_transport.testing.threads import launch_in_threads
from ckpt_transport.testing.wrappers import Fault, FaultKind, FaultTransport, LatencyTransport

__all__ = [
    "CHECKS",
    "LONG_CHECKS",
    "Check",
    "CheckResult",
    "ConformanceError",
    "ConformanceReport",
    "Failure",
    "Fault",
    "FaultKind",
    "FaultTransport",
    "HangError",
    "LatencyTransport",
    "Launcher",
    "LoopbackTransport",
    "RankContext",
    "RankOutcome",
    "launch",
    "launch_in_threads",
    "run",
]
