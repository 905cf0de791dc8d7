"""What a bucket costs the host is some round trips between two threads."""

from __future__ import annotations

import threading

from ckpt_transport.rates.hand_overs import per_bucket


def test_given_this_host_then_a_bucket_costs_something_and_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    assert 0 < per_bucket() < 1
    assert set(threading.enumerate()) <= before
