"""A source compares two versions that it holds, for sinks that serve the older one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ckpt_transport.checkpoint import StoredVersion
from ckpt_transport.deltas import Differences, ForShares, VersionRanges, cut, find_what_is_sent
from ckpt_transport.planning import ServedShares, modules_in_words
from ckpt_transport.service.compared import compared_bytes
from ckpt_transport.service.other_sources import NoDeltaError

MOST = 0.5
"""Carriers may take this share of the bytes of a version; where they would take more, everything is sent."""
BOUNDLESS = 1 << 62


class TooDenseError(NoDeltaError):
    """What has changed would take more bytes than it is worth."""


class Comparison:
    """Finds what differs, and divides it among those who serve it. What it knows of one version serves the next one.

    Args:
        most: bytes of a range that is compared.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._ranges: tuple[object, VersionRanges] = None, VersionRanges()
        self._for_shares: tuple[object, ForShares] = None, ForShares((), ServedShares())
        self._whole: tuple[str, ...] = ()
        """Tensors that sinks took whole when they were asked last."""

    def all(self, base: StoredVersion, stored: StoredVersion, served: ServedShares) -> Differences:
        """What differs, however much that is, for those who serve it.

        Args:
            base, stored: the two versions.
            served: what sinks serve.

        Raises:
            DeltaRefusedError: a sink says that it serves bytes which a tensor has not.
        """
        found = self._found(base, stored, served.whole, BOUNDLESS, lambda: None)
        assert found is not None, "no form takes so many bytes"
        return self._divided(found, stored, served)

    def ahead(self, base: StoredVersion, stored: StoredVersion, check: Callable[[], None]) -> Differences | None:
        """What differs, for everybody; None where sinks must say first what they take whole.

        Sinks say that when they have looked at what they serve. It is found meanwhile, as if these were the tensors of
        the last time.

        Args:
            base, stored: the two versions.
            check: called now and then; what it raises ends the search.

        Raises:
            TooDenseError: it would take more than half of all bytes.
        """
        found = self._found(base, stored, self._whole, _most(stored), check)
        if found is None and not self._whole:
            raise TooDenseError(_too_dense(base))
        return found

    def completed(
        self,
        ahead: Differences | None,
        base: StoredVersion,
        stored: StoredVersion,
        served: ServedShares,
        modules: Mapping[str, str],
        check: Callable[[], None],
    ) -> Differences:
        """What differs, for those who serve it.

        Args:
            ahead: what :meth:`ahead` has found.
            base, stored, check: as there.
            served: what sinks have said meanwhile.
            modules: why modules take tensors whole.

        Raises:
            TooDenseError: it would take more than half of all bytes.
            DeltaRefusedError: see :meth:`all`.
        """
        known, self._whole = self._whole, served.whole
        found = ahead if known == served.whole else self._found(base, stored, served.whole, _most(stored), check)
        if found is None:
            raise TooDenseError("; ".join(filter(None, [_too_dense(base), modules_in_words(modules)])))
        return self._divided(found, stored, served)

    def _divided(self, found: Differences, stored: StoredVersion, served: ServedShares) -> Differences:
        tensors = stored.manifest.tensors
        if not (found.found and served.shares):
            return found
        if self._for_shares[0] != (tensors, served):
            self._for_shares = (tensors, served), ForShares(tensors, served)
        return self._for_shares[1].divide(found)

    def _found(
        self,
        base: StoredVersion,
        stored: StoredVersion,
        whole: tuple[str, ...],
        most: int,
        check: Callable[[], None],
    ) -> Differences | None:
        tensors = stored.manifest.tensors
        if self._ranges[0] != (tensors, whole):
            self._ranges = (tensors, whole), cut(tensors, self._most, frozenset(whole))
        found = find_what_is_sent(self._ranges[1], base.buffers, compared_bytes(stored), most, check)
        for extent in stored.extents:
            extent.check()
        return found


def _most(stored: StoredVersion) -> int:
    return int(stored.manifest.nbytes * MOST)


def _too_dense(base: StoredVersion) -> str:
    return f"what has changed since '{base.manifest.version}' would take more than {MOST:.0%} of all bytes"
