"""Sinks say whether a difference can be put on what they serve. They read all of it, so others work meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from ckpt_transport.config import Config
from ckpt_transport.errors import JoinError
from ckpt_transport.planning import ServedShares, reasons_of
from ckpt_transport.service import questions as q
from ckpt_transport.service.asking import Asking
from ckpt_transport.service.other_sources import NoDeltaError
from ckpt_transport.service.query import asking_bases

Result = TypeVar("Result")


class ServedBases:
    """What sinks say of the base that they serve.

    Args:
        asking: the question to each.
    """

    def __init__(self, asking: Asking[q.BaseServed]) -> None:
        self._asking = asking

    def check(self) -> None:
        """Hear who has answered so far. Where nobody objects, that waits for nothing.

        Raises: as :meth:`shares`.
        """
        self._asking.look()
        if any(map(_objection, self._asking.answers.values())):
            self.shares()

    def shares(self) -> ServedShares:
        """What each serves of a version, once all have answered.

        Raises:
            NoDeltaError: a sink cannot take a difference to this base, or does not say whether it can.
        """
        answers = self._asking.wait().values()
        if why := "; ".join(filter(None, map(_objection, answers))):
            raise NoDeltaError(why, self._asking.silent)
        said = [each for each in answers if not isinstance(each, JoinError)]
        whole = (name for each in said for module in each.whole for name in module.tensors)
        return ServedShares.of((each.share for each in said), whole)

    def modules(self) -> dict[str, str]:
        """Which modules of sinks take their tensors whole, once all have answered, and why."""
        answers = self._asking.wait().values()
        return reasons_of(module for said in answers if not isinstance(said, JoinError) for module in said.whole)


def asked(base: str, updates: Mapping[str, str], config: Config, act: Callable[[ServedBases], Result]) -> Result:
    """Have sinks look at what they serve, and act meanwhile.

    Args:
        base: the name of the version that they should serve.
        updates: by address, the update that has brought it.
        config: settings.
        act: is given what they say.

    Returns: what ``act`` does.
    """
    return asking_bases(base, updates, config, config.join_timeout, lambda asking: act(ServedBases(asking)))


def _objection(said: q.BaseServed | JoinError) -> str:
    return str(said) if isinstance(said, JoinError) else said.reason
