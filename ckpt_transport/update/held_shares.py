"""What a sink needs of a version is mostly the same at each step.

The share of a tensor-parallel rank names thousands of ranges, and to read them takes longer than most of what is done
for a step. So a sink encodes its share once, and a coordinator reads only bytes that it has not read before. Sinks that
need the same get the very same object, so that it is soon found that nothing has changed.
"""

from __future__ import annotations

import msgspec

from ckpt_transport.decoding import prepared
from ckpt_transport.planning import Share

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(prepared(Share)).decode


class ShareEncoder:
    """Encodes what one sink needs. The last share is kept."""

    def __init__(self) -> None:
        self._last: Share | None = None
        self._encoded = b""

    def encode(self, share: Share | None) -> bytes:
        """A share, or nothing for everything."""
        if share is None:
            return b""
        if share is not self._last:
            self._last, self._encoded = share, _encode(share)
        return self._encoded


class ShareReader:
    """Reads what sinks need. What was read for the last update is kept."""

    def __init__(self) -> None:
        self._before: dict[int, list[tuple[bytes, Share]]] = {}
        self._now: dict[int, list[tuple[bytes, Share]]] = {}

    def begin(self) -> None:
        """Sinks are asked anew."""
        if self._now:
            self._before, self._now = self._now, {}

    def read(self, encoded: bytes) -> Share:
        """What a sink needs that needs not everything.

        Raises: :data:`~ckpt_transport.decoding.UNREADABLE`, where the bytes are no share.
        """
        size = len(encoded)
        for known in (self._now, self._before):
            for before, share in known.get(size, ()):
                if before == encoded:
                    return self._keep(before, share)
        return self._keep(encoded, _decode(encoded))

    def _keep(self, encoded: bytes, share: Share) -> Share:
        alike = self._now.setdefault(len(encoded), [])
        if all(each is not share for _, each in alike):
            alike.append((encoded, share))
        return share
