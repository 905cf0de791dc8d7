"""Anybody may ask a sink which version it serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ckpt_transport.config import WEEK, Config
from ckpt_transport.control import Mailbox, Message
from ckpt_transport.control.messages import Refused
from ckpt_transport.errors import ConfigError, JoinError
from ckpt_transport.service import questions as q
from ckpt_transport.service.asking import Answer, Asking, no_answer, refused
from ckpt_transport.service.sink_handles import AnySink, locate
from ckpt_transport.update.mailbox import in_mailbox

Result = TypeVar("Result")
ANSWER_SECONDS = 5.0
DIGEST_SECONDS = 60.0
"""An answer with a digest takes longer: a sink reads all that it serves for it."""


def ask_version(
    address: AnySink, config: Config | None = None, timeout: float | None = None, *, digest: bool = False
) -> q.ServedVersion:
    """Ask the sink at ``address`` what it serves. It answers on the same connection, also while it is being updated.

    Args:
        address: of a sink or a holder; or a handle of a sink, as :meth:`ParameterServer.update` takes it.
        config: settings; by default from the environment.
        timeout: seconds to wait; by default 5, or 60 for a digest.
        digest: have it read all that it serves, for :attr:`ServedVersion.digest`.

    Raises:
        ConfigError: that is no address, or no time to wait.
        JoinError: nobody answered within ``timeout`` seconds.
    """
    config = Config.given(config)
    (found,) = locate([address], config).addresses
    return _ask(found, q.AskVersion(digest), config, _patience(timeout, digest), q.ServedVersion)


def ask_versions(
    addresses: Sequence[str], config: Config | None = None, timeout: float | None = None, *, digest: bool = False
) -> dict[str, q.ServedVersion | JoinError]:
    """Ask many sinks at the same time what they serve.

    Args:
        addresses: of sinks or holders.
        config, timeout, digest: as those of :func:`ask_version`.

    Returns: the answer of each, or why there is none, in the order of the addresses.

    Raises:
        ConfigError: one is no address, or that is no time to wait.
    """
    config = Config.given(config)
    questions = dict.fromkeys(addresses, q.AskVersion(digest))

    def ask(mailbox: Mailbox) -> dict[str, q.ServedVersion | JoinError]:
        return Asking(mailbox, questions, q.ServedVersion, _patience(timeout, digest)).wait()

    return in_mailbox("", q.COORDINATOR, config, ask)


def asking_bases(
    base: str,
    updates: Mapping[str, str],
    config: Config,
    timeout: float,
    act: Callable[[Asking[q.BaseServed]], Result],
) -> Result:
    """Ask sinks at the same time whether they can take the difference to a version that they have got.

    They compute a digest of what they serve for that.

    Args:
        base: its name.
        updates: by address, the update that has brought it.
        config, timeout: as those of :func:`ask_version`.
        act: called while their answers come.

    Returns: what ``act`` does.

    Raises: as :func:`ask_versions`.
    """
    questions = {address: q.AskBase(base, update) for address, update in updates.items()}

    def ask(mailbox: Mailbox) -> Result:
        return act(Asking(mailbox, questions, q.BaseServed, timeout))

    return in_mailbox("", q.COORDINATOR, config, ask)


def resolve(address: str, *, forward: bool, config: Config | None = None, timeout: float = 5.0) -> q.ServedVersion:
    """Tell a sink that is in doubt which version to serve, and return what it serves then.

    Args:
        address: the sink's.
        forward: whether to the new version; else it serves again what it did before. All sinks of its update must
            serve the same: ask those that answer with :func:`ask_version`.
        config, timeout: as those of :func:`ask_version`.

    Raises:
        ConfigError: that is no address.
        JoinError: it did not answer, or is not in doubt.
    """
    return _ask(address, q.Resolve(forward), config, _checked(timeout), q.ServedVersion)


def ask_expected(address: str, config: Config | None = None, timeout: float = 5.0) -> q.ExpectedTensors:
    """Ask the sink at ``address`` which tensors it expects of a version.

    Raises: as :func:`ask_version`.
    """
    return _ask(address, q.AskExpected(), config, timeout, q.ExpectedTensors)


def _patience(timeout: float | None, digest: bool) -> float:
    """
    Raises:
        ConfigError: that is no time to wait.
    """
    if timeout is not None:
        return _checked(timeout)
    return DIGEST_SECONDS if digest else ANSWER_SECONDS


def _checked(timeout: object) -> float:
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout <= WEEK:
        raise ConfigError(f"timeout is {timeout!r}; give a number of seconds above zero and at most a week")
    return timeout


def _ask(address: str, question: Message, config: Config | None, timeout: float, kind: type[Answer]) -> Answer:
    config = Config.given(config)
    deadline = time.monotonic() + timeout

    def ask(mailbox: Mailbox) -> Answer:
        mailbox.send(address, question)
        while (received := mailbox.receive(max(deadline - time.monotonic(), 0.0))) is not None:
            answer = received[1]
            if isinstance(answer, kind):
                return answer
            if isinstance(answer, Refused):
                raise refused(address, answer)
        raise no_answer(address, question, timeout)

    return in_mailbox("", q.COORDINATOR, config, ask)
