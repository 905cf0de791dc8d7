"""However a command is watched or interrupted, its exit code says what has become of the sinks."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file

from ckpt_transport import Config, ParameterServer, ask_version
from ckpt_transport_torch import Loader
from tests.fleet import SinkSpec, fleet, weights
from tests.patience import DEADLINE, PATIENT
from tests.support.commands import ENVIRONMENT, run, running, shell_command


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(weights(2), tmp_path / "model.safetensors")
    return tmp_path


def test_given_an_update_when_telling_its_progress_fails_then_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    told = []

    def progress(done: int, total: int) -> None:
        told.append(done)
        raise OSError("no terminal")

    with fleet(SinkSpec()) as (sink,), ParameterServer(Config.load(**{**PATIENT, "bucket_bytes": "4KiB"})) as server:
        server.register("v2", tensors=weights(2))
        server.update("v2", [sink.address], progress=progress)
        assert sink.state().version == "v2"
        assert sink.state().holds(weights(2))
    assert len(told) == 1
    assert "progress is not told any more" in caplog.text


@pytest.mark.parametrize("reader", ["head -c 1", "true"])
def test_given_a_reader_that_goes_away_then_the_update_is_made_all_the_same(checkpoint: Path, reader: str) -> None:
    with fleet(SinkSpec()) as (sink,):
        update = shell_command("update", "--checkpoint", checkpoint, "--version", "v2", "--sink", sink.address)
        script = f"set -o pipefail; {shlex.join(update)} | {reader}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=DEADLINE, env=ENVIRONMENT)
        assert (done.returncode, done.stderr) == (0, "")
        assert sink.state().version == "v2"


def slowly(module: torch.nn.Module, begun: Path, go_on: Path) -> Loader:
    """A loader that takes everything when it may. It cannot be recorded.

    Args:
        begun: a file that says that it has begun.
        go_on: a file for which it waits then.
    """
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            state[name][...] = tensor.numpy()
            begun.touch()
            wait_until(go_on.exists)

    return load


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("others", "code", "said"),
    [(["--sink", "ipc:///tmp/nobody"], 1, "UpdateAbortedError"), ([], 3, "TaintedError")],
    ids=["before", "half-way"],
)
def test_given_an_update_when_it_is_interrupted_then_it_says_whether_sinks_must_not_serve(
    checkpoint: Path, tmp_path: Path, others: list[str], code: int, said: str, number: signal.Signals
) -> None:
    """Given a command that waits for a sink, or one whose sink is being loaded, when it is interrupted."""
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    patient = {**ENVIRONMENT, "CKPT_TRANSPORT_JOIN_TIMEOUT": str(DEADLINE)}
    with fleet(SinkSpec(loader=partial(slowly, begun=begun, go_on=go_on))) as (sink,):
        update = ["update", f"--checkpoint={checkpoint}", "--version=v2", "--sink", sink.address, *others]
        with running(*update, environ=patient) as process:
            wait_until((lambda: ask_version(sink.address, timeout=DEADLINE).update) if others else begun.exists)
            process.interrupt(number)
            go_on.touch()
            ended = process.wait()
            errors = process.errors()
        assert ended == code, errors
        assert said in errors
        assert "Traceback" not in errors
        assert bool(ask_version(sink.address, timeout=DEADLINE).tainted) == (code == 3)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_given_a_terminal_of_few_characters_when_an_update_ends_well_then_its_exit_code_says_so(
    checkpoint: Path, encoding: str
) -> None:
    environ = {**ENVIRONMENT, "PYTHONIOENCODING": encoding}
    with fleet(SinkSpec()) as (sink,):
        update = ("update", "--checkpoint", checkpoint, "--version", "v2", "--sink", sink.address)
        done = run(*update, "--verbose", environ=environ)
        assert (done.returncode, done.stderr) == (0, "")
        assert "#" in done.stdout
        assert "expected of assumed rates ('ckpt-transport transports --measure' measures them); " in done.stdout
        assert sink.state().version == "v2"
    for other in (["plan", "--checkpoint", checkpoint], ["transports"], ["--help"], ["update", "--help"]):
        shown = run(*other, environ=environ)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout


INTERRUPTED_WHILE_LOADING = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == MODULE:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from ckpt_transport.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["ckpt_transport.cli", "typer", "ckpt_transport.cli.update", "torch"])
def test_given_a_command_that_is_loading_when_it_is_interrupted_then_it_ends_without_a_traceback(module: str) -> None:
    code = INTERRUPTED_WHILE_LOADING.replace("MODULE", repr(module))
    loading = [sys.executable, "-c", code, "transports"]
    done = subprocess.run(loading, capture_output=True, text=True, timeout=DEADLINE, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_given_an_output_that_is_full_then_that_is_said_and_the_update_is_made(checkpoint: Path) -> None:
    with fleet(SinkSpec()) as (sink,), open("/dev/full", "wb") as full:
        update = shell_command("update", "--checkpoint", checkpoint, "--version", "v2", "--sink", sink.address)
        done = subprocess.run(update, stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        assert "what follows is not printed: [Errno 28]" in done.stderr
        assert sink.state().version == "v2"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_given_an_output_that_is_full_or_closed_then_a_document_ends_without_a_traceback(checkpoint: Path) -> None:
    command = shlex.join([*map(str, shell_command("plan", "--checkpoint", checkpoint, "--json"))])
    for output, said in (("> /dev/full", "the document is not printed: [Errno 28]"), (">&-", "")):
        done = subprocess.run(
            ["bash", "-c", f"{command} {output}"], capture_output=True, text=True, timeout=DEADLINE, env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert said in done.stderr


def test_given_a_trace_that_cannot_be_written_then_it_is_refused_before_the_update(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    for trace in (tmp_path, file / "trace.json"):
        with fleet(SinkSpec()) as (sink,):
            done = run("update", f"--checkpoint={checkpoint}", "--version=v2", "--sink", sink.address, "--trace", trace)
            assert done.returncode == 1
            assert "choose another place for the trace" in done.stderr
            assert "Traceback" not in done.stderr
            assert sink.state().version == "v1"


def test_given_a_trace_in_directories_that_are_not_there_then_they_are_made(checkpoint: Path, tmp_path: Path) -> None:
    trace = tmp_path / "some" / "where" / "trace.json"
    with fleet(SinkSpec()) as (sink,):
        done = run("update", f"--checkpoint={checkpoint}", "--version=v2", "--sink", sink.address, "--trace", trace)
        assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(trace.read_bytes())


def test_given_a_sink_that_does_not_answer_then_it_hides_no_other() -> None:
    nobody = "ipc:///tmp/nobody"
    with fleet(SinkSpec()) as (sink,):
        answers: dict[str, dict[str, str]] = {}
        timeout = 1.0
        while not answers.get(sink.address, {}).get("version"):
            assert timeout < DEADLINE, answers
            timeout *= 4
            asked = run("version", "--timeout", timeout, "--json", nobody, sink.address)
            assert asked.returncode == 1
            answers = msgspec.json.decode(asked.stdout)
        assert "no answer" in answers[nobody]["error"]
        assert answers[sink.address]["version"] == "v1"
        table = run("version", "--timeout", timeout, nobody, sink.address)
        assert "no answer" in " ".join(table.stdout.split())
        assert "v1" in table.stdout


@pytest.mark.parametrize("name", ["", "two\nlines"], ids=repr)
def test_given_a_version_whose_name_cannot_be_printed_then_it_is_refused(checkpoint: Path, name: str) -> None:
    done = run("serve", "--checkpoint", checkpoint, "--version", name)
    assert done.returncode == 1
    assert "give a name of printable characters" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sink", "ipc:///tmp/x", "--pause", "abort"], "--pause is for requests at --endpoint"),
        (["--sink", "ipc:///tmp/x", "--draft"], "--draft is for engines at --endpoint"),
        (["--engine", "vllm"], "--engine and --endpoint belong together"),
        (["--sink", "ipc:///tmp/x", "--ranks", "0"], "with --ranks choose --update-method"),
        (["--sink", "ipc:///tmp/x", "--update-method", "p2p", "--ranks", "first"], "--ranks is 'first'"),
    ],
)
def test_given_options_that_do_not_go_together_then_the_exit_code_is_that_of_wrong_options(
    checkpoint: Path, options: list[str], said: str
) -> None:
    done = run("update", "--checkpoint", checkpoint, "--version", "v2", *options)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_given_a_holder_when_it_is_interrupted_then_nothing_is_left(
    checkpoint: Path, tmp_path: Path, number: signal.Signals
) -> None:
    metas = tmp_path / "metas.json"
    with running("serve", f"--checkpoint={checkpoint}", "--version=v2", f"--save-metas={metas}") as process:
        wait_until(metas.exists)
        process.interrupt(number)
        assert process.wait() == 128 + number
