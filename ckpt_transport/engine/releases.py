"""Knows which releases of an inference engine an adapter works with."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ckpt_transport.errors import ConfigError

Release = tuple[int, ...]


def release_of(version: str, numbers: int) -> Release | None:
    """The first ``numbers`` numbers of a version, as of ``0.32.0+cpu``; None where it does not begin with so many."""
    found = re.match(r"\d+" + r"\.\d+" * (numbers - 1), version)
    return None if found is None else tuple(int(each) for each in found[0].split("."))


@dataclass(frozen=True, slots=True)
class ReleaseRange:
    """The releases of an engine that an adapter works with.

    Attributes:
        engine: its name, as people write it.
        first, last: the releases at both ends, which are in the range; as many numbers of each as are compared.
    """

    engine: str
    first: Release
    last: Release

    def check(self, version: str) -> None:
        """
        Raises:
            ConfigError: this release is outside the range; names the range.
        """
        release = release_of(version, len(self.first))
        if release is None or not self.first <= release <= self.last:
            raise ConfigError(
                f"{self.engine} {version} is not supported: this adapter uses parts of {self.engine} that change "
                f"between releases, and works with {self._in_words()}; install one that it works with, or a newer "
                "ckpt-transport"
            )

    def _in_words(self) -> str:
        return " to ".join(dict.fromkeys(".".join(map(str, each)) for each in (self.first, self.last)))
