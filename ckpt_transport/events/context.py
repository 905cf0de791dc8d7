"""What a thread of ours works on, for whatever is logged meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class About(threading.local):
    """Says for whom the thread speaks; empty where it is nobody.

    Attributes:
        member: the label of a source, a sink or a holder.
        update: the name of the update that it takes part in.
    """

    member = ""
    update = ""


about = About()


@contextmanager
def speaking_for(member: str, update: str = "") -> Iterator[None]:
    """Within the block this thread speaks for that member, in that update."""
    before = about.member, about.update
    about.member, about.update = member, update
    try:
        yield
    finally:
        about.member, about.update = before
