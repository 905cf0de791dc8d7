"""What a source rank holds is mostly the same at each step, but for the name of the version.

Encoded, a manifest of ten thousand tensors is a megabyte, and to read that takes longer than most of what is done for a
step. So a source rank encodes its manifest without the version, and once for all versions that have nothing else of
their own. Rank 0 compares the bytes with those that it has read, and reads others only.
"""

from __future__ import annotations

import msgspec

from ckpt_transport.decoding import prepared
from ckpt_transport.planning import Manifest

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(prepared(Manifest)).decode


class ManifestEncoder:
    """Encodes what one source rank holds. The last manifest is kept."""

    def __init__(self) -> None:
        self._last: Manifest | None = None
        self._encoded = b""

    def encode(self, manifest: Manifest) -> bytes:
        """It without its version: the same bytes as before where nothing else differs."""
        held = msgspec.structs.replace(manifest, version="")
        if held != self._last:
            self._encoded, self._last = _encode(held), held
        return self._encoded


class ManifestReader:
    """Reads what source ranks hold. What each has said last is kept."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[bytes, Manifest]] = {}

    def read(self, rank: int, version: str, encoded: bytes) -> Manifest:
        """What a rank holds of a version.

        Raises: :data:`~ckpt_transport.decoding.UNREADABLE`, where the bytes are no manifest.
        """
        before, held = self._read.get(rank, (b"", None))
        if held is None or before != encoded:
            held = _decode(encoded)
            self._read[rank] = encoded, held
        return msgspec.structs.replace(held, version=version)
