"""``python -m tests.sglang.checkpoints FOLDER OPTIONS`` writes what ``tests.support.tiny_models`` does.

transformers imports torchvision where it is installed, which needs the stand-ins here.
"""

from __future__ import annotations

import runpy

from tests.sglang import standins

if __name__ == "__main__":
    assert standins.declared
    runpy.run_module("tests.support.tiny_models", run_name="__main__", alter_sys=True)
