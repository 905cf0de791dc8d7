"""Finds where elements of a version are in what an engine serves, from their positions in the version's extents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

from ckpt_transport.deltas.carried_blocks import SomeBlocks
from ckpt_transport.deltas.copied_rows import Numbers, apart, rows_of
from ckpt_transport.deltas.host_elements import HostElements
from ckpt_transport.deltas.row_layer import Layer, NearRows
from ckpt_transport.deltas.served_spans import ServedSpans
from ckpt_transport.memory import StridedBytes
from ckpt_transport.planning import Carrier, PlacedTensor, TensorSpec


class ElementMap:
    """Knows for each byte of a version's extents to which bytes of an engine's tensors it goes.

    It is compiled to *rows*, one for each copy of a placed tensor. Rows are looked up by the position of an element, so
    those of one layer lie apart from each other; what is read twice, or interleaved, takes another layer.

    Args:
        placed: the version's tensors, and where they lie.
        specs, copies: see :class:`~ckpt_transport.engine.ServedElements`.
        device: where kernels look elements up, if they do.

    Raises:
        DeltaRefusedError: a tensor is not one of ``specs``, or is copied in a way in which elements cannot be followed.
    """

    def __init__(
        self, placed: Sequence[PlacedTensor], specs: Sequence[TensorSpec], copies: StridedBytes, device: torch.device
    ) -> None:
        sizes = [0] * (1 + max((tensor.extent for tensor in placed), default=0))
        for tensor in placed:
            sizes[tensor.extent] = max(sizes[tensor.extent], tensor.offset + tensor.nbytes)
        self._starts = [0, *accumulate(sizes)]
        rows = rows_of(placed, self._starts, specs, copies)
        self._layers = [Layer(layer, device) for layer in apart(rows)]

    def near(self, carriers: Sequence[Carrier]) -> tuple[Numbers, list[NearRows]]:
        """The position of each carrier's range, and which rows of each layer it may meet."""
        extents, offsets, nbytes = np.array([(each.extent, each.offset, each.nbytes) for each in carriers], np.int64).T
        starts = np.array(self._starts, np.int64)
        known = (extents >= 0) & (extents + 1 < len(starts))
        extents = np.where(known, extents, 0)
        origins = starts[extents] + offsets
        lows = np.where(known, origins, starts[-1])
        highs = np.where(known, np.minimum(origins + nbytes, starts[extents + 1]), starts[-1])
        return origins, [layer.near(lows, highs) for layer in self._layers]

    def spans(self, bases: Numbers) -> ServedSpans:
        """Where elements may go, when the served tensors have these addresses."""
        return ServedSpans.of([layer.rows for layer in self._layers], bases)

    def locate_on_host(self, carrier: Carrier, some: SomeBlocks, bases: Numbers) -> list[HostElements]:
        """Find elements of a carrier in host memory. One that goes to several places has a value for each.

        Args:
            carrier: says where its range is.
            some: elements of it. Their values are used where they are.
            bases: the address of each served tensor.
        """
        found: list[HostElements] = []
        if carrier.extent + 1 < len(self._starts) and len(some.places):
            start, end = self._starts[carrier.extent : carrier.extent + 2]
            for number, layer in enumerate(self._layers):
                parts = layer.locate_on_host(start + carrier.offset, end, some, carrier.unit, bases)
                found += (part._replace(values=part.values.copy()) for part in parts) if number else parts
        return found
