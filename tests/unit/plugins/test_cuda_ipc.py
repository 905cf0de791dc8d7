"""What cuda_ipc says of memory is understood in the right process."""

from __future__ import annotations

import subprocess
import sys

FORKED = """
import os
from ckpt_transport_cuda_ipc.plugin import this_process
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, this_process().encode())
    os._exit(0)
os.wait()
print(os.read(read, 100).decode() != this_process() == this_process())
"""


def test_given_a_process_that_was_forked_then_memory_of_its_parent_and_siblings_is_not_taken_for_its_own() -> None:
    """Then it maps what they lend, instead of using their addresses."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"
