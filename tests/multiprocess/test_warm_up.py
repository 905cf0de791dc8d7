"""What the first update would do is done while the engine serves."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_transport import CheckpointError, Config, Engine, ParameterServer
from ckpt_transport.service import ask_version
from ckpt_transport_torch import attach
from tests.patience import DEADLINE, PATIENT
from tests.unit.torch_modules import Pairs, holds, looks_up, net, version

CONFIG = Config.load(**PATIENT)
PROGRAM = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from ckpt_transport import Config
    from ckpt_transport.replay import module_loading
    from ckpt_transport_torch import attach
    from tests.patience import PATIENT
    from tests.unit.torch_modules import holds, looks_up, net, version

    recorded = []
    record = module_loading.record

    def counted(*arguments):
        recorded.append(arguments)
        return record(*arguments)

    module_loading.record = counted
    module = net()
    by_loader, checkpoint = sys.argv[1] == "by its loader", Path(sys.argv[2])
    served = attach(module, loader=looks_up(module) if by_loader else None, config=Config.load(**PATIENT),
        warm=checkpoint)
    print(served.address, flush=True)
    sys.stdin.readline()
    before = set(sys.modules)
    assert len(recorded) == by_loader, recorded
    print("ready", flush=True)
    sys.stdin.readline()
    assert holds(module, version(module, 0.5))
    assert len(recorded) == by_loader, recorded
    print(sorted(set(sys.modules) - before), flush=True)
    served.close()
    """
)


@contextmanager
def engine(loads: str, checkpoint: Path) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, "-c", PROGRAM, loads, str(checkpoint)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return line(process)


def warmed_up(address: str) -> str:
    """Waits until a sink has warmed up, and returns what it says of that."""
    deadline = time.monotonic() + DEADLINE
    while not (said := ask_version(address, CONFIG, timeout=DEADLINE).warm_up).startswith(("warmed up", "could not")):
        assert time.monotonic() < deadline, said
        time.sleep(0.02)
    return said


@pytest.mark.parametrize("loads", ["by name", "by its loader"])
def test_given_an_engine_that_has_warmed_up_then_its_first_update_records_and_imports_nothing(
    loads: str, tmp_path: Path
) -> None:
    save_file(version(net(), 0.1), tmp_path / "model.safetensors")
    with engine(loads, tmp_path) as process, ParameterServer(CONFIG) as server:
        address = line(process)
        said = warmed_up(address)
        assert said.startswith("warmed up")
        assert ("recorded the loader" in said) == (loads == "by its loader")
        assert go_on(process) == "ready"
        server.register("v1", tensors=version(net(), 0.5))
        server.update("v1", [address])
        assert go_on(process) == "[]"


class Slow:
    """A loader that stands still in its first call, which records it, until it is told to go on."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._load = looks_up(module)
        self.called, self.go_on = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self, pairs: Pairs) -> None:
        self.calls += 1
        self.called.set()
        assert self.go_on.wait(DEADLINE)
        self._load(pairs)


def test_given_a_warm_up_that_takes_long_then_passes_run_and_an_update_waits_for_it() -> None:
    """Given a loader that is being recorded, when an update comes, then it goes on when that is done, and uses it."""
    module = net()
    loader = Slow(module)
    before = version(module, 0.1)
    module.load_state_dict(before)
    with (
        attach(module, loader=loader, config=CONFIG, warm=module.state_dict()) as served,
        ParameterServer(CONFIG) as server,
        ThreadPoolExecutor(1) as threads,
    ):
        assert loader.called.wait(DEADLINE)
        assert ask_version(served.address, CONFIG, timeout=DEADLINE).warm_up.startswith("warms up")
        module(torch.zeros(2, 16))
        server.register("v1", tensors=version(module, 0.5))
        update = threads.submit(server.update, "v1", [served.address])
        with pytest.raises(TimeoutError):
            update.result(0.2)
        module(torch.zeros(2, 16))
        assert holds(module, before)
        loader.go_on.set()
        report = update.result(DEADLINE)
        assert report is not None
        assert holds(module, version(module, 0.5))
        assert "found to be the same" in next(iter(report.apply_summary.values()))
        assert loader.calls == 3, "twice to record it, and once to compare it with its replay"
        assert "recorded the loader" in ask_version(served.address, CONFIG, timeout=DEADLINE).warm_up


def test_given_tensors_that_the_loader_does_not_know_then_that_is_said_and_an_update_records_what_it_brings() -> None:
    module = net()
    unknown = {"head": torch.empty(3, 7, device="meta")}
    with attach(module, loader=looks_up(module), config=CONFIG, warm=unknown) as served:
        assert "could not record the loader: the loader failed on fake tensors" in warmed_up(served.address)
        with ParameterServer(CONFIG) as server:
            server.register("v1", tensors=version(module, 0.5))
            report = server.update("v1", [served.address])
        assert report is not None
        assert "found to be the same" in next(iter(report.apply_summary.values()))
        assert holds(module, version(module, 0.5))


def test_given_an_engine_that_fails_to_warm_up_then_that_is_named_and_it_takes_updates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(engine: Engine, specs: object) -> Generator[str]:
        yield "compiled kernels"
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Engine, "warm_up", fail)
    module = net()
    with attach(module, config=CONFIG, warm=module.state_dict()) as served, ParameterServer(CONFIG) as server:
        assert warmed_up(served.address) == "could not warm up: RuntimeError: out of memory"
        server.register("v1", tensors=version(module, 0.5))
        server.update("v1", [served.address])
        assert holds(module, version(module, 0.5))


def test_given_nothing_to_warm_up_with_then_attach_refuses(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="mapping of tensors is empty"):
        attach(net(), warm={})
    with pytest.raises(CheckpointError, match=tmp_path.name):
        attach(net(), warm=tmp_path)
