"""Types may be used for the first time by many threads at once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import msgspec

from ckpt_transport.decoding import prepared

MANY_THREADS = """
import msgspec, sys, threading
from ckpt_transport.decoding import prepared

sys.setswitchinterval(1e-6)

def use(kind, together):
    together.wait()
    msgspec.json.decode(b'{"x": {}, "y": []}', type=prepared(kind))

for number in range(100):
    inner = msgspec.defstruct(f"Inner{number}", [("a", dict[str, float]), ("b", tuple[int, ...])])
    kind = msgspec.defstruct(f"Outer{number}", [("x", dict[str, inner]), ("y", list[inner]), ("z", inner | None, None)])
    together = threading.Barrier(4)
    threads = [threading.Thread(target=use, args=(kind, together)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_given_types_that_many_threads_use_first_then_the_process_lives_on() -> None:
    done = subprocess.run([sys.executable, "-c", MANY_THREADS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_given_a_type_then_the_same_one_is_returned_and_may_be_anything_that_can_be_decoded() -> None:
    @dataclass
    class Point:
        x: int

    for kind in (Point, dict[int, bytes], tuple[str, bytes] | None):
        assert prepared(kind) is kind
    assert msgspec.json.decode(b'{"x": 3}', type=prepared(Point)) == Point(3)
