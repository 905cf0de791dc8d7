"""Ray's actors as sinks and as sources, on two nodes of one machine."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ckpt_transport import (
    Config,
    ConfigError,
    EngineError,
    JoinError,
    ParameterServer,
    UpdateAbortedError,
    ask_version,
)
from ckpt_transport_torch import attach
from ckpt_transport_vllm import VllmFleet, VllmHandle
from tests.fleet import model, weights
from tests.held_vllm import Pausing
from tests.injection import Fault, inject
from tests.leftovers import left_behind
from tests.patience import DEADLINE, SWIFT

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
STORE_NBYTES = 80 << 20
"""Memory of each node's object store: nothing of ours goes through it."""
SECONDS = 120.0


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


class Rollout:
    """An actor that serves a model."""

    def __init__(self, label: str, settings: dict[str, Any]) -> None:
        from ckpt_transport_ray import node_address

        self.module = model(1)
        self.served = attach(self.module, node_address(), version="v1", label=label, config=Config.load(**settings))

    def address(self) -> str:
        return self.served.address

    def serve(self) -> tuple[str, str, dict[str, torch.Tensor]]:
        return self.served.version, self.served.tainted, self.module.state_dict()

    def die_at(self, method: str) -> int:
        """From now on, the process is killed when its engine is asked for that."""
        inject(Fault(method), self.served._engine)
        return os.getpid()

    def wait_for(self, file: Path) -> None:
        wait_for(file)

    def close(self) -> None:
        self.served.close()


class Trainer:
    """An actor that is a source, one of two where it is told who is the first."""

    def __init__(self, rank: int, settings: dict[str, Any]) -> None:
        self.rank, self.settings, self.share = rank, settings, slice(None)
        self.server = ParameterServer(Config.load(**settings), rank=0, world_size=1)

    def listen(self) -> str:
        from ckpt_transport_ray import node_address

        self.follow(node_address())
        return self.server.listen()

    def follow(self, coordinator: str) -> None:
        self.server.close()
        self.share = slice(self.rank, None, 2)
        config = Config.load(**self.settings, coordinator=coordinator)
        self.server = ParameterServer(config, rank=self.rank, world_size=2)

    def publish(self, number: int, sinks: list[Any]) -> str:
        mine = dict(list(weights(number).items())[self.share])
        report = self.server.publish(f"v{number}", mine, sinks)
        return "" if report is None else report.version

    def close(self) -> None:
        self.server.close()


class Engine(Pausing):
    """An actor that is called as a vLLM's ``LLM`` is."""

    def __init__(self, label: str, settings: dict[str, Any]) -> None:
        super().__init__(Config.load(**settings))

    def is_sleeping(self) -> bool:
        return self.sleeps

    def serve(self) -> tuple[str, str, dict[str, torch.Tensor]]:
        return self.attached.version, self.attached.tainted, self.model.state_dict()

    def wait_for(self, file: Path) -> None:
        wait_for(file)

    def close(self) -> None:
        self.attached.close()


class Nodes:
    """A Ray of two nodes; actors ask for the resource ``first`` or ``second``."""

    def __init__(self, ray: Any, address: str, secret: Path) -> None:
        self._ray, self.address, self.settings = ray, address, {**SWIFT, "secret_file": str(secret)}
        self.versions = itertools.count(2)

    @contextmanager
    def actor(self, kind: type, node: str, first: Any, **options: Any) -> Iterator[Any]:
        """An actor on a node; it is closed and ended after the block, if it lives."""
        made = self._ray.remote(kind).options(num_cpus=0, resources={node: 1}, **options)
        actor = made.remote(first, self.settings)
        try:
            yield actor
        finally:
            with suppress(Exception):
                self.get(actor.close.remote())
            self._ray.kill(actor)

    def get(self, answers: Any) -> Any:
        return self._ray.get(answers, timeout=SECONDS)

    def named(self, name: str) -> Any:
        return self._ray.get_actor(name)

    def kill(self, actor: Any) -> None:
        """Ended, and known to be so: ``ray.kill`` only asks for it, and the actor answers a little longer."""
        self._ray.kill(actor)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                self.get(actor.close.remote())
            except self._ray.exceptions.ActorDiedError:
                return
            except self._ray.exceptions.ActorUnavailableError:
                time.sleep(0.05)
        raise TimeoutError(f"{actor} answers {SECONDS:.0f} s after it was to be killed")


SLOWER = SimpleNamespace(monotonic=lambda: time.monotonic() / 10, sleep=time.sleep, time=time.time)
"""The clock by which Ray gives a node 30 s to start; on a busy machine one takes longer."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    import ray
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # paths of sockets are short
    secret = folder / "secret"
    secret.touch(mode=0o600)
    secret.write_text("a secret of the test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else it leaves a token in the home of who runs this
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr("ray._private.node.time", SLOWER)
        node = {"num_cpus": 2, "object_store_memory": STORE_NBYTES}
        cluster = Cluster(True, head_node_args={**node, "include_dashboard": False, "resources": {"first": 9}})
        try:
            cluster.add_node(**node, resources={"second": 9})
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            yield Nodes(ray, cluster.address, secret)
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
    assert not left_behind()


@pytest.fixture(scope="module")
def rollouts(nodes: Nodes) -> Iterator[list[Any]]:
    """A sink on each node."""
    with nodes.actor(Rollout, "first", "one") as one, nodes.actor(Rollout, "second", "other") as other:
        yield [one, other]


@pytest.fixture(scope="module")
def trainers(nodes: Nodes) -> Iterator[list[Any]]:
    """A source on each node."""
    with nodes.actor(Trainer, "first", 0) as one, nodes.actor(Trainer, "second", 1) as other:
        yield [one, other]


@pytest.fixture
def server(nodes: Nodes) -> Iterator[ParameterServer]:
    with ParameterServer(Config.load(**nodes.settings), rank=0, world_size=1) as server:
        yield server


def publish(server: ParameterServer, number: int, sinks: list[Any]) -> str:
    report = server.publish(f"v{number}", weights(number), sinks)
    assert report is not None
    return report.version


def check_served(nodes: Nodes, sinks: list[Any], number: int) -> None:
    for version, tainted, tensors in nodes.get([sink.serve.remote() for sink in sinks]):
        assert (version, tainted) == (f"v{number}", "")
        assert all(torch.equal(tensors[name], tensor) for name, tensor in weights(number).items())


def test_given_actors_of_two_nodes_as_sinks_when_an_actor_publishes_then_each_serves_it(
    nodes: Nodes, rollouts: list[Any], trainers: list[Any]
) -> None:
    for number in (next(nodes.versions), next(nodes.versions)):
        assert nodes.get(trainers[1].publish.remote(number, rollouts)) == f"v{number}"
        check_served(nodes, rollouts, number)
    assert {ask_version(sink, Config.load(**nodes.settings), timeout=DEADLINE).version for sink in rollouts} == {
        f"v{number}"
    }
    assert nodes.get(rollouts[0].address.remote()).startswith("tcp://")


def test_given_several_actors_as_sources_then_each_sends_its_part(
    nodes: Nodes, rollouts: list[Any], trainers: list[Any]
) -> None:
    nodes.get(trainers[1].follow.remote(nodes.get(trainers[0].listen.remote())))
    for number in (next(nodes.versions), next(nodes.versions)):
        assert nodes.get([each.publish.remote(number, rollouts) for each in trainers]) == [f"v{number}", ""]
        check_served(nodes, rollouts, number)


def test_given_handles_and_addresses_in_one_call_then_they_mean_the_same(
    nodes: Nodes, rollouts: list[Any], server: ParameterServer
) -> None:
    one, other = rollouts[0], nodes.get(rollouts[1].address.remote())
    number = next(nodes.versions)
    publish(server, number, [other, one])
    check_served(nodes, rollouts, number)
    with pytest.raises(ConfigError, match="named twice"):
        publish(server, number, [rollouts[1], other])
    with pytest.raises(ConfigError, match="named twice"):
        publish(server, number, [one, one])


def test_given_an_actor_that_is_known_when_it_is_busy_then_it_is_updated_still(
    nodes: Nodes, rollouts: list[Any], server: ParameterServer, tmp_path: Path
) -> None:
    publish(server, next(nodes.versions), rollouts)
    busy = rollouts[0].wait_for.remote(tmp_path / "go")
    number = next(nodes.versions)
    assert publish(server, number, rollouts) == f"v{number}"
    (tmp_path / "go").touch()
    nodes.get(busy)
    check_served(nodes, rollouts, number)


def test_given_an_actor_that_dies_in_an_update_then_it_is_named_and_found_again_when_it_is_started_again(
    nodes: Nodes, rollouts: list[Any], server: ParameterServer
) -> None:
    number = next(nodes.versions)
    publish(server, number, rollouts[:1])
    with nodes.actor(Rollout, "second", "dying", name="the-dying-one", max_restarts=1) as dying:
        nodes.get(dying.die_at.remote("hold"))
        sinks = [rollouts[0], dying]
        by_ray = r"actor Rollout 'the-dying-one' \(\w+\) on node \S+, \w+ is gone"
        while_it_is_started_again = r"\(dying at \S+\) is gone"
        with pytest.raises(UpdateAbortedError, match=f"{by_ray}|{while_it_is_started_again}"):
            publish(server, number + 1, sinks)
        check_served(nodes, rollouts[:1], number)
        number = next(nodes.versions)
        publish(server, number, sinks)
        check_served(nodes, sinks, number)


def test_given_an_actor_that_is_dead_before_an_update_then_it_is_named_at_once(
    nodes: Nodes, rollouts: list[Any], server: ParameterServer
) -> None:
    number = next(nodes.versions)
    with nodes.actor(Rollout, "second", "dead", name="the-dead-one") as dead:
        sinks = [rollouts[0], dead]
        publish(server, number, sinks)
        os.kill(nodes.get(dead.die_at.remote("hold")), signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(UpdateAbortedError, match=r"actor Rollout 'the-dead-one' \(\w+\) on node \S+, \w+ is gone"):
            publish(server, number + 1, sinks)
        with pytest.raises(UpdateAbortedError, match=r"Actor\(Rollout, \w+\) is gone: .*the-dead-one.* ip: "):
            publish(server, number + 1, sinks)
        with pytest.raises(JoinError, match="the-dead-one"):
            ask_version(dead)
        assert time.monotonic() - began < SWIFT["join_timeout"]
    check_served(nodes, rollouts[:1], number)


def test_given_an_actor_without_an_address_then_the_error_says_what_it_lacks(
    nodes: Nodes, trainers: list[Any], server: ParameterServer
) -> None:
    with pytest.raises(UpdateAbortedError, match=r"actor Trainer .* has no 'address'"):
        publish(server, next(nodes.versions), trainers[:1])


def test_given_actors_that_are_called_as_vllms_then_a_fleet_takes_their_handles_and_holds_each(nodes: Nodes) -> None:
    config = Config.load(**nodes.settings)
    with nodes.actor(Engine, "first", "one", name="held") as one, nodes.actor(Engine, "second", "other") as other:
        number = next(nodes.versions)
        with ParameterServer(config, rank=0, world_size=1) as server, VllmFleet([one, other], config) as fleet:
            server.register(f"v{number}", tensors=weights(number))
            done = fleet.update(server, f"v{number}")
            assert done is not None
            assert done.problems == ()
            assert set(done.held) == {repr(one), repr(other)}
        check_served(nodes, [one, other], number)
        assert not any(nodes.get([each.is_sleeping.remote() for each in (one, other)]))
        with pytest.raises(ConfigError, match=r"Actor\(Engine, \w+\) is given twice"):
            VllmFleet([one, nodes.named("held")], config)


def test_given_an_actor_in_another_method_when_it_is_to_pause_then_it_is_named_and_does_not_pause_later(
    nodes: Nodes, tmp_path: Path
) -> None:
    with nodes.actor(Engine, "first", "busy") as busy:
        handle = VllmHandle(busy)
        handle.wait(SECONDS)
        waiting = busy.wait_for.remote(tmp_path / "go")
        with pytest.raises(
            EngineError, match=r"sleep of Actor\(Engine, \w+\) has not returned .* one method at a time"
        ):
            handle.pause("keep", 1.0)
        (tmp_path / "go").touch()
        nodes.get(waiting)
        assert not nodes.get(busy.is_sleeping.remote())


def test_given_an_engines_actor_that_is_dead_then_the_error_names_it(nodes: Nodes) -> None:
    with nodes.actor(Engine, "first", "dead") as dead:
        handle = VllmHandle(dead)
        handle.wait(SECONDS)
        nodes.kill(dead)
        with pytest.raises(EngineError, match=r"collective_rpc of Actor\(Engine, \w+\) failed with ActorDiedError"):
            handle.world_size()


def test_given_the_example_then_each_step_of_its_actors_is_served(nodes: Nodes) -> None:
    environ = {**os.environ, "RAY_ADDRESS": nodes.address}
    command = [sys.executable, "-m", "examples.trainers.ray_actors"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environ)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    trained = re.findall(r"step-\d: loss (\S+), served with (\S+) and (\S+)", done.stdout)
    assert len(trained) == 3
    assert all(loss == one == other for loss, one, other in trained)
    assert len({loss for loss, _, _ in trained}) == 3


def test_given_what_is_no_sink_then_the_error_says_what_would_be_one(server: ParameterServer) -> None:
    with pytest.raises(ConfigError, match=r"<object object at .*there are adapters for: .*ray"):
        publish(server, 2, [object()])
