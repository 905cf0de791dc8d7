"""Tables are numbers on a device that kernels read; they stay there and serve many launches, on any stream."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.memory.fence import stream_for


def put(numbers: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Bring numbers to a device, without waiting for what else is enqueued there."""
    if device.type != "cuda":
        return torch.from_numpy(numbers)
    stream = stream_for("tables", device)
    with torch.cuda.stream(stream):
        table = torch.from_numpy(numbers).to(device)
    stream.synchronize()
    return table


def record_use(*tables: torch.Tensor) -> None:
    """Have tables that are dropped keep their memory until what is enqueued now on the current stream has ended."""
    for table in tables:
        if table.is_cuda:
            table.record_stream(torch.cuda.current_stream(table.device))
