"""What a sink remembers of the last update that has ended there, for those who ask about it later."""

from __future__ import annotations

from ckpt_transport.update import messages as m
from ckpt_transport.update.settlement import Standing


class EndedUpdate:
    """Remembers how the last update has ended, and what the sink has said then.

    Attributes:
        last_word: what was said last; None while another update goes on.
    """

    def __init__(self) -> None:
        self.last_word: m.Reply | None = None
        self._staged, self._standing = "", Standing.UNKNOWN

    def note(self, staged: str, standing: Standing) -> None:
        """The staged update of that word ends so; other updates have no word."""
        self._staged, self._standing = staged, standing

    def standing(self, staged: str) -> Standing:
        """How the staged update of that word has ended here, if it was the last one."""
        return self._standing if staged == self._staged else Standing.UNKNOWN

    def answer_to(self, order: m.AnyOrder) -> m.Reply | None:
        """The end of the update that an order belongs to; None where that has not ended here."""
        word = self.last_word
        is_end = isinstance(word, m.Committed | m.Dismissed | m.Aborted) and word.update == order.update
        return word if is_end else None
