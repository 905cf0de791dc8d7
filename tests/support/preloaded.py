"""What the fork server of the tests has loaded, so that its children start in milliseconds.

A plugin's module does not load the library that it is for, and no transport is probed here.
"""

import contextlib
import importlib
from importlib.metadata import entry_points

from ckpt_transport.transports.registry import GROUP

for _module in ("ckpt_transport.cli", "ckpt_transport_fp8", "tests.fleet", "tests.conformance.bodies"):
    importlib.import_module(_module)
for _plugin in entry_points(group=GROUP):
    with contextlib.suppress(ImportError, OSError):
        _plugin.load()
