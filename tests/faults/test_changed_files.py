"""What a trainer does to its files after it has registered them reaches no engine."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import UpdateAbortedError
from ckpt_transport.memory.segment import SHM
from tests.fleet import SinkSpec, fleet, weights
from tests.patience import PATIENT


@pytest.fixture
def file() -> Iterator[Path]:
    """A checkpoint in shared memory, that somebody else keeps there."""
    path = SHM / f"test-changed-{os.getpid()}-{secrets.token_hex(4)}.safetensors"
    save_file(weights(2), path)
    yield path
    path.unlink(missing_ok=True)


def cut(path: Path) -> None:
    os.truncate(path, 0)


def overwrite(path: Path) -> None:
    """With another version of the same size, in place, as ``cp`` and many savers do."""
    other = path.with_suffix(".other")
    save_file(weights(3), other)
    with path.open("r+b") as target:
        target.write(other.read_bytes())
    other.unlink()


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_a_file_that_is_cut_or_overwritten_then_it_is_served_as_it_was_registered(
    transport: str, file: Path
) -> None:
    """Given a registered file in shared memory, when it changes before or in an update, then sinks get what it held."""
    with fleet(SinkSpec()) as (sink,), ParameterServer(Config.load(transport=transport, **PATIENT)) as server:
        server.register("v2", files=[file])
        changes: list[Callable[[Path], None]] = [overwrite, cut, Path.unlink]
        for change in changes:
            server.update("v2", [sink.address], before_hold=lambda change=change: change(file))  # type: ignore[misc]
            server.update("v2", [sink.address])
            state = sink.state()
            assert state.holds(weights(2))
            assert (state.version, state.tainted, state.served) == ("v2", "", "")


def test_given_a_segment_that_was_cut_then_it_is_named_and_kills_nobody() -> None:
    """Given a mapped pool, when somebody who may cuts it between updates, then the update is refused by name."""
    with fleet(SinkSpec()) as (sink,), ParameterServer(Config.load(transport="shm", **PATIENT)) as server:
        stored = server.register("v2", tensors=weights(2))
        server.update("v2", [sink.address])
        segment = stored.buffers[0].segment
        assert segment is not None
        segment.path.chmod(0o600)
        os.truncate(segment.path, 0)
        with pytest.raises(UpdateAbortedError, match=f"somebody has cut {segment.path} short"):
            server.update("v2", [sink.address])
        state = sink.state()
        assert (state.version, state.tainted, state.served) == ("v2", "", "")
        assert state.holds(weights(2))
