"""Parts of a bucket, or of an extent, that somebody looks at again with each version."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ckpt_transport.memory.host_copies import Numbers

Part = tuple[int, int]
"""Where bytes start in a bucket, and how many there are; they lie within a run."""


class Parts(list[Part]):
    """Parts whose numbers stand in columns, too. They stay as they are."""

    @cached_property
    def starts(self) -> Numbers:
        """Where each starts."""
        return np.array([at for at, _ in self], np.int64)

    @cached_property
    def sizes(self) -> Numbers:
        """The bytes of each."""
        return np.array([nbytes for _, nbytes in self], np.int64)


NO_PARTS = Parts()
