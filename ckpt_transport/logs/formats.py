"""Formatters for :mod:`logging`: events are told apart from other lines by what they carry."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import msgspec

from ckpt_transport.events import Event, about


class JsonLines(logging.Formatter):
    """Makes one line of JSON of each record.

    Every line has ``at`` (seconds since the epoch), ``level``, ``logger`` and ``process``; ``member`` and ``update``
    where the thread that logs speaks for one. An event has its own keys, all others have ``message``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "at": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
        }
        line.update((key, value) for key, value in (("member", about.member), ("update", about.update)) if value)
        event = event_of(record)
        line.update({"message": record.getMessage()} if event is None else msgspec.to_builtins(event))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class TextLines(logging.Formatter):
    """Makes a line for people of each record: when, how bad, who, and what."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end; the trace of an exception follows in lines of its own."""
        when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        event = event_of(record)
        what = record.getMessage() if event is None else _in_words(event)
        who = f"{about.member}: " if about.member else ""
        text = f"{when} {record.levelname:7} {who}{what}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def event_of(record: logging.LogRecord) -> Event | None:
    """The event that a record is about, if it is about one."""
    event = getattr(record, "event", None)
    return event if isinstance(event, Event) else None


def _in_words(event: Event) -> str:
    said = msgspec.to_builtins(event)
    kind = str(said.pop("event")).replace("_", " ")
    del said["at"]
    return f"{kind}: " + " ".join(f"{key}={value}" for key, value in said.items())
