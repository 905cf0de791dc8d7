"""An update is one trace, from the trainer's own span to the steps of each engine, which run in other processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace as api
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import ConfigError, TaintedError
from ckpt_transport.tracing import Spans
from tests.fleet import SinkSpec, fleet, weights
from tests.injection import Fault
from tests.patience import DEADLINE, PATIENT

TRACED: dict[str, Any] = {**PATIENT, "opentelemetry": True}
STEPS = {"propose", "open", "connect", "stand", "run", "commit"}


class Trainer:
    """The spans of this process, in memory."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = self.provider.get_tracer("trainer")

    def named(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self._kept.get_finished_spans() if span.name == name]
        return span


@pytest.fixture
def trainer() -> Iterator[Trainer]:
    made = Trainer()
    stop = Spans(made.provider).begin()
    yield made
    stop()


def as_line(span: ReadableSpan) -> str:
    return str(span.to_json(indent=None)) + "\n"


def write_spans(path: Path) -> None:
    """Have an engine's process write its spans to a file, as its own set-up of OpenTelemetry would."""
    provider = TracerProvider()
    file = path.open("a", buffering=1)
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=file, formatter=as_line)))
    api.set_tracer_provider(provider)


def engine(path: Path, fault: Fault | None = None) -> SinkSpec:
    return SinkSpec(settings=TRACED, prepare=partial(write_spans, path), fault=fault)


def spans_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_given_two_engines_when_a_trainer_updates_them_in_a_span_of_its_own_then_all_steps_are_one_trace(
    tmp_path: Path, trainer: Trainer
) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    with (
        fleet(*map(engine, files)) as sinks,
        ParameterServer(Config.load(transport="gloo", **PATIENT), rank=0, world_size=1) as server,
    ):
        server.register("v2", tensors=weights(2))
        with trainer.tracer.start_as_current_span("training step") as own:
            server.update("v2", [sink.address for sink in sinks])
    update = trainer.named("ckpt_transport.update")
    here = own.get_span_context()
    assert update.parent is not None
    assert update.context is not None
    assert (update.context.trace_id, update.parent.span_id) == (here.trace_id, here.span_id)
    assert update.attributes is not None
    assert update.attributes["ckpt_transport.outcome"] == "committed"
    run = trainer.named("run")
    assert run.parent == update.context
    assert update.start_time is not None
    assert run.start_time is not None
    assert update.start_time <= run.start_time
    for number, file in enumerate(files):
        spans = spans_in(file)
        assert {span["name"] for span in spans} == STEPS
        for span in spans:
            assert int(span["context"]["trace_id"], 16) == here.trace_id
            assert int(span["parent_id"], 16) == update.context.span_id
            assert span["attributes"]["ckpt_transport.member"] == f"sink {number}"
            assert span["attributes"]["ckpt_transport.update"] == update.attributes["ckpt_transport.update"]


def test_given_an_engine_that_fails_then_its_step_and_the_update_say_why(tmp_path: Path, trainer: Trainer) -> None:
    file = tmp_path / "a"
    with (
        fleet(engine(file, Fault("load", act="raise"))) as (sink,),
        ParameterServer(Config.load(transport="gloo", **PATIENT), rank=0, world_size=1) as server,
    ):
        server.register("v2", tensors=weights(2))
        with pytest.raises(TaintedError):
            server.update("v2", [sink.address])
    update = trainer.named("ckpt_transport.update")
    assert update.status.status_code is api.StatusCode.ERROR
    (failed,) = [span for span in spans_in(file) if span["status"]["status_code"] == "ERROR"]
    assert failed["name"] == "run"
    assert "injected into load" in failed["status"]["description"]


def test_given_a_trainer_that_does_not_trace_then_engines_make_no_spans(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with (
        fleet(engine(file)) as (sink,),
        ParameterServer(Config.load(transport="gloo", **PATIENT), rank=0, world_size=1) as server,
    ):
        server.register("v2", tensors=weights(2))
        server.update("v2", [sink.address])
    assert spans_in(file) == []


def test_given_no_traces_then_nothing_of_opentelemetry_is_imported() -> None:
    program = (
        "import sys, ckpt_transport, ckpt_transport.cli.bringing, ckpt_transport.spi\n"
        "from ckpt_transport import Config, ParameterServer\n"
        "ParameterServer(Config.load(environ={}), rank=0, world_size=1).close()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_given_traces_are_asked_for_and_opentelemetry_is_missing_then_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ckpt_transport.tracing", None)
    with pytest.raises(ConfigError, match=r"pip install 'ckpt-transport\[opentelemetry\]'"):
        ParameterServer(Config.load(**TRACED), rank=0, world_size=1)
