"""A sink is named by its address, or by an object that tells it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import pytest
import torch

from ckpt_transport import Config, ConfigError, ParameterServer, Sink, StreamEngine, TaintedError, ask_version
from ckpt_transport.service.sink_handles import LocatedHandles, LocatedSinks, locate, say_gone
from tests.patience import DEADLINE


@dataclass
class Known:
    address: str


class Departed(LocatedHandles):
    """Handles of processes that are gone."""

    addresses = ("ipc:///departed",)

    def gone(self, patience: float) -> Sequence[str]:
        return ["actor 7 is gone"]


def test_given_addresses_and_objects_that_have_one_then_their_order_is_kept() -> None:
    located = locate(["ipc:///a", Known("ipc:///b"), "ipc:///c"], Config.load())
    assert located.addresses == ("ipc:///a", "ipc:///b", "ipc:///c")
    assert located.gone(0.0) == []


@pytest.mark.parametrize("wrong", [object(), Known(""), Known(7)])  # type: ignore[arg-type]
def test_given_what_has_no_address_then_it_is_named_and_so_is_what_would_do(wrong: Known) -> None:
    with pytest.raises(ConfigError, match=r"is no sink: name it by its address.* adapters for: "):
        locate([wrong], Config.load())


def test_given_a_sink_of_this_process_then_it_is_its_own_handle() -> None:
    with closing(Sink(StreamEngine("streamed"), version="v1").start()) as sink:
        assert ask_version(sink, timeout=DEADLINE).version == "v1"
        with ParameterServer(rank=0, world_size=1) as server, pytest.raises(ConfigError, match="named twice"):
            server.publish("v2", {"w": torch.ones(4)}, [sink, sink.address])


def test_given_an_error_when_processes_are_gone_then_it_names_them_once_and_stays_what_it_is() -> None:
    error = TaintedError("it failed", ("sink 1",))
    for _ in range(2):
        say_gone(error, LocatedSinks((), (Departed(),)).gone(0.0))
    assert str(error) == "it failed; actor 7 is gone"
    assert error.sinks == ("sink 1",)
