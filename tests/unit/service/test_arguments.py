"""Arguments of a wrong kind are refused by name, with what would do, before anything is asked or written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ckpt_transport
import ckpt_transport_torch
from ckpt_transport import CheckpointError, CkptTransportError, ConfigError
from ckpt_transport.checkpoint import Store
from ckpt_transport.memory import MemoryKind
from ckpt_transport.service.query import resolve

library: Any = ckpt_transport
attach: Any = ckpt_transport_torch.attach
"""As those see them who check no types."""

MODULE = torch.nn.Linear(2, 2)
SETTINGS = {"transport": "shm"}
NOWHERE = "ipc:///tmp/nobody"


def register(**given: Any) -> object:
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        return store.register("v1", **given)


@pytest.mark.parametrize(
    "make",
    [
        lambda config: attach(MODULE, config=config),
        lambda config: library.ParameterServer(config),
        lambda config: library.Holder("v1", tensors=MODULE.state_dict(), config=config),
        lambda config: library.Joiner(["holder.json"], config),
        lambda config: library.ask_version(NOWHERE, config),
    ],
)
def test_given_settings_that_are_no_config_then_the_call_that_makes_one_is_named(make: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigError, match=r"config is \{'transport': 'shm'\} and no Config; give Config.load\(transpo"):
        make(SETTINGS)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e300, "5", True])
def test_given_a_time_that_nobody_can_wait_then_it_is_refused_before_anybody_is_asked(timeout: Any) -> None:
    for ask in (library.ask_version, partial(resolve, forward=True)):
        with pytest.raises(ConfigError, match=r"timeout is .*; give a number of seconds above zero and at most a week"):
            ask(NOWHERE, timeout=timeout)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: attach(MODULE.state_dict()), ConfigError, "is no torch.nn.Module; give the module that serves"),
        (lambda: attach(MODULE, label=5), ConfigError, "label is 5; give a text"),
        (lambda: attach(MODULE, engine=5), ConfigError, "engine is 5; give a text"),
        (lambda: attach(MODULE, address=7000), ConfigError, "address is 7000; give a text"),
        (lambda: attach(MODULE, version="a\nb"), ConfigError, r"version is 'a\\nb'; give a text of printable"),
        (lambda: attach(MODULE, loader="load"), ConfigError, "loader is 'load'; give a function that takes pairs"),
        (lambda: attach(MODULE, warm=5), ConfigError, "warm is 5; give tensors by name, or the directory"),
        (lambda: library.ParameterServer(rank="0", world_size=1), ConfigError, "rank is '0' and must be a whole numb"),
        (lambda: library.Joiner("holder.json"), ConfigError, r"give \['holder.json'\] instead of 'holder.json'"),
        (lambda: library.Joiner(["/nobody.json"]), ConfigError, "/nobody.json cannot be read"),
        (lambda: library.Joiner([5]), ConfigError, "5 is no path"),
        (lambda: library.Mapping.load("/nobody.toml"), ConfigError, "/nobody.toml cannot be read"),
        (lambda: register(files="a.safetensors"), CheckpointError, r"give \['a.safetensors'\] instead of"),
        (lambda: register(files=Path("a.safetensors")), CheckpointError, r"give \['a.safetensors'\] instead of"),
        (lambda: register(files=[5]), CheckpointError, "5 is no path: give that of a file or a directory"),
        (lambda: register(directory=5), CheckpointError, "5 is no path: give that of a file or a directory"),
    ],
)
def test_given_an_argument_of_a_wrong_kind_then_it_is_named_with_what_would_do(
    call: Callable[[], object], error: type[CkptTransportError], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
    assert "forward" not in vars(MODULE)


def test_given_tensors_right_after_the_name_then_register_takes_them_as_lend_and_publish_do() -> None:
    with ckpt_transport.ParameterServer(rank=0, world_size=1) as server:
        taken_in = [take(name, MODULE.state_dict()) for name, take in (("v1", server.register), ("v2", server.lend))]
        assert [list(stored.manifest.specs) for stored in taken_in] == [["weight", "bias"]] * 2
