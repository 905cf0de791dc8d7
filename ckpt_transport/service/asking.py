"""Many listeners are asked at the same time, and whoever asks may do something else until they answer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Generic, TypeVar

from ckpt_transport.control import Mailbox, Message
from ckpt_transport.control.messages import Refused
from ckpt_transport.errors import JoinError
from ckpt_transport.service import questions as q

Answer = TypeVar("Answer", bound=Message)
ASKED_AT_ONCE = 256
"""Listeners that are asked at the same time; each takes a descriptor here."""


class Asking(Generic[Answer]):
    """Questions that are on their way, and the answers that have come.

    Args:
        mailbox: they are sent from there; nobody else drives it.
        questions: by address.
        kind: the type of an answer.
        timeout: seconds that each may take, from when it was asked.

    Attributes:
        answers: by address; the error says why there is none.
        silent: who has not answered in time.

    Raises:
        ConfigError: one is no address.
    """

    def __init__(self, mailbox: Mailbox, questions: Mapping[str, Message], kind: type[Answer], timeout: float) -> None:
        self._mailbox, self._questions, self._kind, self._timeout = mailbox, questions, kind, timeout
        self._unasked = deque(questions)
        self._until: dict[str, float] = {}
        """Those that were asked and have not answered, the first one first, and how long each may take."""
        self.answers: dict[str, Answer | JoinError] = {}
        self.silent: list[str] = []
        self._ask()

    def look(self) -> None:
        """Take in what has come; wait for nothing."""
        while self._until and (received := self._mailbox.receive(0)) is not None:
            self._take_in(*received)

    def wait(self) -> dict[str, Answer | JoinError]:
        """What each has answered, or why it has not, in the order of the questions."""
        while self._until:
            oldest = next(iter(self._until))
            received = self._mailbox.receive(max(self._until[oldest] - time.monotonic(), 0.0))
            if received is None:
                self.silent.append(oldest)
                self._end(oldest, no_answer(oldest, self._questions[oldest], self._timeout))
            else:
                self._take_in(*received)
        return {address: self.answers[address] for address in self._questions}

    def _ask(self) -> None:
        while self._unasked and len(self._until) < ASKED_AT_ONCE:
            address = self._unasked.popleft()
            self._until[address] = time.monotonic() + self._timeout
            self._mailbox.send(address, self._questions[address])

    def _take_in(self, sender: str, answer: Message) -> None:
        if sender not in self._until:
            return
        if isinstance(answer, self._kind):
            self._end(sender, answer)
        elif isinstance(answer, Refused):
            self._end(sender, refused(sender, answer))

    def _end(self, address: str, answer: Answer | JoinError) -> None:
        self.answers[address] = answer
        del self._until[address]
        self._mailbox.forget(address)
        self._ask()


def refused(address: str, answer: Refused) -> JoinError:
    return JoinError(f"{address} refuses: {answer.reason}")


def no_answer(address: str, question: Message, timeout: float) -> JoinError:
    if question == q.AskVersion(digest=True):
        return JoinError(
            f"no digest from {address} within {timeout:g} s; a sink reads all that it serves for it, so give it a "
            "longer timeout, and ask for its version without a digest to see whether one is running there"
        )
    cure = (
        "is a sink running there, with the same secret_file?"
        if address.startswith("tcp")
        else "is a sink running there?"
    )
    return JoinError(f"no answer from {address} within {timeout:g} s; {cure}")
