"""A version may bring some tensors to sinks that serve a *base*, which has the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec

from ckpt_transport.checkpoint import StoredVersion
from ckpt_transport.errors import StoreError, UsageError
from ckpt_transport.planning import Conversion


class Brought(NamedTuple):
    """What a sink has got.

    Attributes:
        version: its name.
        update: the update that has brought it.
        content: that of the stored version it was; None where a sink has other bytes besides.
    """

    version: str
    update: str
    content: object = None


NOTHING = Brought("", "")


class BroughtVersions:
    """What a server has brought to each sink, and by which update, so that a base is known by more than its name."""

    def __init__(self) -> None:
        self._brought: dict[str, Brought] = {}

    def take_out(self, sinks: Iterable[str]) -> Mapping[str, Brought]:
        """An update begins, and as long as it goes on it is not known what these serve; what they have served."""
        known = {address: self._brought[address] for address in sinks if address in self._brought}
        for address in known:
            self._brought.pop(address, None)
        return known

    def put_back(self, known: Mapping[str, Brought]) -> None:
        """The update has changed nothing."""
        self._brought.update(known)

    def remember(self, sinks: Iterable[str], brought: Brought) -> None:
        self._brought.update(dict.fromkeys(sinks, brought))

    def content_of(self, sinks: Sequence[str]) -> object:
        """The bytes that this server has brought to all of them last; None where they are not known to be the same."""
        contents = {id(content): content for content in (self._of(address).content for address in sinks)}
        return contents.popitem()[1] if len(contents) == 1 else None

    def has_brought(self, content: object) -> bool:
        """Whether a sink is known to serve these bytes."""
        return any(brought.content is content for brought in self._brought.values())

    def _of(self, address: str) -> Brought:
        return self._brought.get(address, NOTHING)

    def base_of(self, sinks: Sequence[str]) -> str:
        """The version that this server has brought to all of them last.

        Raises:
            UsageError: it has not brought one and the same to all.
        """
        versions = {self._of(address).version for address in sinks}
        base = versions.pop() if len(versions) == 1 else ""
        if not base:
            raise UsageError(
                "some tensors are to be brought, and it is not known on what: this server has not brought one version "
                "to all of these sinks before; say base=, the version that they serve, or bring all tensors"
            )
        return base

    def updates(self, base: str, sinks: Sequence[str]) -> dict[str, str]:
        """By which update each sink got its base, where this server has brought it."""
        known = {address: self._of(address) for address in sinks}
        return {address: brought.update for address, brought in known.items() if brought.version == base}


class BroughtPart(NamedTuple):
    """Which tensors of a version are brought.

    Attributes:
        only: their names; None for all that the version has.
        base: what sinks must serve; empty for what the version or the last update says.
    """

    only: Collection[str] | None = None
    base: str = ""

    def of(self, stored: StoredVersion, *, alone: bool) -> StoredVersion:
        """What a rank sends of a version.

        Raises: as :func:`part_of`.
        """
        return stored if self.only is None else part_of(stored, self.only, alone=alone)

    def base_for(self, stored: StoredVersion, brought: BroughtVersions, sinks: Sequence[str]) -> str:
        """What ``sinks`` must serve; empty where all tensors are brought.

        Raises: as :meth:`BroughtVersions.base_of`.
        """
        if self.base or stored.base:
            return self.base or stored.base
        return "" if self.only is None else brought.base_of(sinks)


WHOLE = BroughtPart()


def part_of(stored: StoredVersion, names: Collection[str], *, alone: bool) -> StoredVersion:
    """What a rank holds of these tensors of a version.

    Args:
        stored: the version.
        names: of the tensors.
        alone: no other rank holds any.

    Raises:
        StoreError: the version has no such tensor, or this is one name and no collection of names; names it.
    """
    if isinstance(names, str):
        raise StoreError(f"only is to be a collection of names, also where it is one: give ['{names}']")
    manifest, wanted = stored.manifest, frozenset(names)
    if unknown := sorted(wanted - manifest.specs.keys()) if alone else ():
        raise StoreError(f"version '{manifest.version}' has no tensor '{unknown[0]}', which is to be brought")
    kept = [number for number, tensor in enumerate(manifest.tensors) if tensor.spec.name in wanted]
    if not kept and alone:
        raise StoreError(f"no tensor of version '{manifest.version}' is to be brought; name at least one")
    conversions = (
        Conversion(each.how, tuple(name for name in each.tensors if name in wanted)) for each in manifest.conversions
    )
    part = msgspec.structs.replace(
        manifest,
        tensors=tuple(manifest.tensors[number] for number in kept),
        digests=tuple(manifest.digests[number] for number in kept) if manifest.digests else (),
        conversions=tuple(each for each in conversions if each.tensors),
        same=tuple(same for names in manifest.same if len(same := tuple(name for name in names if name in wanted)) > 1),
        replicated=tuple(name for name in manifest.replicated if name in wanted),
    )
    return replace(stored, manifest=part, content=None)
