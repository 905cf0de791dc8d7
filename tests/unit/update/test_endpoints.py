"""A transport that cannot be opened is named, whoever wrote it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ckpt_transport.errors import PluginError, TransportError
from ckpt_transport.transports.interface import Availability, Control, Endpoint, Group, Transport
from ckpt_transport.update.endpoints import opened


class Acme(Transport):
    name = "acme"
    gives: object = None

    @classmethod
    def probe(cls) -> Availability:
        return Availability(True)

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        if isinstance(self.gives, Exception):
            raise self.gives
        return cast(Endpoint, self.gives)


def attach(gives: object) -> None:
    acme: Any = Acme()
    acme.gives = gives
    opened(acme, cast(Group, None), cast(Control, None), 1.0)


def test_given_an_error_of_a_library_beneath_a_transport_then_the_transport_is_named() -> None:
    with pytest.raises(PluginError, match="transport 'acme' cannot be opened: ValueError: no such rail"):
        attach(ValueError("no such rail"))
    with pytest.raises(PluginError, match=r"cannot be opened: NotImplementedError$"):
        attach(NotImplementedError())


def test_given_no_endpoint_then_the_transport_is_named() -> None:
    with pytest.raises(PluginError, match="transport 'acme' cannot be opened: it gives None, which is no Endpoint"):
        attach(None)


def test_given_an_error_of_this_library_then_it_is_not_touched() -> None:
    with pytest.raises(TransportError, match=r"^a cable is out$"):
        attach(TransportError("a cable is out"))
