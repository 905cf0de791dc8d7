"""Whoever leads updates keeps what became of each where its settings say."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from ckpt_transport import Config, ConfigError, ParameterServer, Sink, UpdateAbortedError
from ckpt_transport.history import History
from ckpt_transport_torch import TorchEngine
from tests.fleet import model as model_of
from tests.fleet import weights
from tests.patience import PATIENT


class BrokenEngine(TorchEngine):
    """Fails at its second version."""

    loads = 0

    def finish(self) -> None:
        self.loads += 1
        if self.loads == 2:
            raise RuntimeError("the second one is not for me")
        super().finish()


def test_given_updates_that_are_committed_aborted_and_rolled_back_then_the_history_has_each(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "history.jsonl"
    config = Config.load(history=str(path), commit="staged", transport="shm", **PATIENT)
    engine = BrokenEngine(model_of(1), "", "sink 0")
    with (
        closing(Sink(engine, "", "v1", config).start()) as sink,
        ParameterServer(config, rank=0, world_size=1) as server,
    ):
        for seed in (2, 3, 4):
            server.register(f"v{seed}", tensors=weights(seed))
        server.update("v2", [sink.address])
        with pytest.raises(UpdateAbortedError):
            server.update("v3", [sink.address])
        server.update("v4", [sink.address])
        server.rollback([sink.address])
    kept = History(path).updates()
    assert [(past.ended.kind, past.ended.version, past.ended.outcome) for past in kept] == [
        ("rollback", "v2", "committed"),
        ("update", "v4", "committed"),
        ("update", "v3", "aborted"),
        ("update", "v2", "committed"),
    ]
    back, last, failed, first = kept
    assert "the second one is not for me" in failed.ended.reason
    assert list(failed.ended.phases)[-1] == "run"
    assert (back.timeline, failed.timeline) == (None, None)
    for past in (first, last):
        assert past.timeline is not None
        assert {(row.label, row.kind) for row in past.timeline.rows} >= {("source 0", "transfer"), ("sink 0", "apply")}
        assert 0 < past.timeline.seconds < past.ended.seconds
        assert list(past.ended.held) == ["sink 0"]


def test_given_a_history_that_cannot_be_written_then_the_update_is_refused_before_anything_moves(
    tmp_path: Path,
) -> None:
    config = Config.load(history=str(tmp_path), **PATIENT)
    with (
        closing(Sink(TorchEngine(model_of(1)), "", "v1", config).start()) as sink,
        ParameterServer(config, rank=0, world_size=1) as server,
    ):
        server.register("v2", tensors=weights(2))
        with pytest.raises(ConfigError, match=r"history .* choose another place"):
            server.update("v2", [sink.address])
        assert sink.version == "v1"
