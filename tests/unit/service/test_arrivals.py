"""Whoever asks a sink during an update hears how far it is, and what has come over which link."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from ckpt_transport import Config, ParameterServer, ServedVersion, Sink, ask_version
from tests.fleet import model as model_of
from tests.fleet import weights
from tests.patience import DEADLINE, PATIENT
from tests.support.slow import SlowEngine

LAYERS = 6
LAYER_BYTES = 4 * 256 * 256


def wait_for(sink: str, condition: Callable[[ServedVersion], bool]) -> ServedVersion:
    deadline = time.monotonic() + DEADLINE
    while not condition(served := ask_version(sink, timeout=DEADLINE)):
        assert time.monotonic() < deadline, served
        time.sleep(0.01)
    return served


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_an_update_that_runs_when_a_sink_is_asked_then_it_says_what_has_come_over_which_link(
    transport: str,
) -> None:
    module = model_of(1, LAYERS)
    slow = SlowEngine(module)
    config = Config.load(transport=transport, bucket_bytes=LAYER_BYTES + 1024, ring_depth=2, **PATIENT)
    with (
        closing(Sink(slow, "", "v1", config).start()) as sink,
        ParameterServer(config, rank=0, world_size=1) as server,
    ):
        before = ask_version(sink.address, timeout=DEADLINE)
        assert (before.version, before.state, before.arrivals) == ("v1", "", ())
        server.register("v2", tensors=weights(2, layers=LAYERS))
        update = threading.Thread(target=server.update, args=("v2", [sink.address]))
        update.start()
        try:
            during = wait_for(sink.address, lambda served: any(arrival.done for arrival in served.arrivals))
            assert (during.version, during.update, during.since) == ("v1", "v2", before.since)
            (arrival,) = during.arrivals
            assert (arrival.sender, arrival.transport) == ("source 0", transport)
            assert 0 < arrival.done < arrival.nbytes
            assert arrival.nbytes >= LAYERS * LAYER_BYTES
        finally:
            slow.may_go_on.set()
            update.join(DEADLINE)
        after = wait_for(sink.address, lambda served: served.version == "v2")
        assert (after.state, after.arrivals) == ("", ())
        assert after.since > before.since
