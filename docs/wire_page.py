"""The page about messages on the wire."""

from __future__ import annotations

import inspect
import itertools
import re
import typing
from collections.abc import Iterator
from types import ModuleType

from ckpt_transport.control import messages as wire
from ckpt_transport.service import questions
from ckpt_transport.update import joining_messages, message_kinds, messages, protocol
from docs.described import public_names
from docs.rendering import page, prose, table


def wire_messages() -> str:
    parts = [prose(wire.__doc__ or ""), "## Of every mailbox"]
    parts += _messages(wire)
    parts += ["## Of an update", prose(protocol.__doc__ or ""), _exchanges()]
    parts += itertools.chain(*map(_messages, (message_kinds, joining_messages, messages)))
    parts += ["## At any time", prose(questions.__doc__ or "")]
    parts += _messages(questions)
    for name in ("PARTICIPANT", "COORDINATOR"):
        understood = ", ".join(f"`{kind.__name__}`" for kind in getattr(questions, name))
        parts.append(f"A {name.lower()} understands {understood}.")
    return page("Messages on the wire", *parts)


def _exchanges() -> str:
    rows = [
        (
            f"`{exchange.order.__name__}`",
            f"`{exchange.answer.__name__}`",
            "; ".join(exchange.during) if len(exchange.during) < len(protocol.State) else "is in the update",
            exchange.then or "has left the update",
        )
        for exchange in protocol.EXCHANGES
    ]
    return table(("order", "answer", "followed by a member that", "which then"), rows)


def _messages(module: ModuleType) -> Iterator[str]:
    for name in public_names(module):
        kind = getattr(module, name)
        if isinstance(kind, type) and issubclass(kind, wire.Message) and kind is not wire.Message:
            fields = ", ".join(f"{field}: {_type(hint)}" for field, hint in typing.get_type_hints(kind).items())
            doc = kind.__doc__
            yield f"### {name}\n\n`{name}({fields})`"
            if doc and kind.__dict__.get("__doc__"):
                yield prose(inspect.cleandoc(doc))


def _type(hint: object) -> str:
    return (
        hint.__name__
        if isinstance(hint, type) and not typing.get_args(hint)
        else re.sub(r"(\w+\.)+(?=\w)", "", str(hint))
    )
