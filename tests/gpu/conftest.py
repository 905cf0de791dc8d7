"""Tests on a GPU: ``make gpu-test``. Without one there are none."""

from __future__ import annotations

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
