"""Transports that work, and whose probe does not."""

from __future__ import annotations

import os
import threading

from ckpt_transport.transports.interface import Availability
from tests.conformance.transports.one_sided import ReadTransport


class ProbeOpensFiles(ReadTransport):
    """Each probe leaves a descriptor behind."""

    @classmethod
    def probe(cls) -> Availability:
        os.open("/dev/null", os.O_RDONLY)
        return Availability(True)


class ProbeRaises(ReadTransport):
    """A probe fails instead of saying why the transport cannot run."""

    @classmethod
    def probe(cls) -> Availability:
        raise OSError("no such device")


class ProbeHangs(ReadTransport):
    """A probe does not return."""

    @classmethod
    def probe(cls) -> Availability:
        threading.Event().wait()
        return Availability(True)


class ProbeSaysTrue(ReadTransport):
    """A probe returns something that is not an answer."""

    @classmethod
    def probe(cls) -> Availability:
        return True  # type: ignore[return-value]


class ProbeDies(ReadTransport):
    """A probe ends the process."""

    @classmethod
    def probe(cls) -> Availability:
        os._exit(3)
