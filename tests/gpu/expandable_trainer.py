"""A trainer whose memory torch puts together of many allocations, as PYTORCH_CUDA_ALLOC_CONF says; told what to do.

Run as ``python -m tests.gpu.expandable_trainer --sinks ADDRESS ...``. It reads one order a line, and answers each by
one line of JSON.
"""

from __future__ import annotations

import argparse
import encodings.idna  # noqa: F401
import json
import os
import sys
from typing import Any

import torch

from ckpt_transport import Config, ParameterServer, StoredVersion
from ckpt_transport.errors import CkptTransportError
from ckpt_transport.memory import find_allocations
from ckpt_transport_torch import attach
from tests.fleet import weights
from tests.patience import PATIENT


class Trainer:
    """Its weights, and what it has told sinks of them.

    Args:
        sinks: addresses.
        device: where the weights are.
        shape: of :func:`tests.fleet.weights`.
        config: of its server.
    """

    def __init__(self, sinks: list[str], device: str, shape: dict[str, Any], config: Config) -> None:
        self._sinks, self._device, self._shape = sinks, device, shape
        self._server = ParameterServer(config)
        self._tensors = self._made(1)
        self._kept: list[dict[str, torch.Tensor]] = []
        """Older weights, whose memory is held."""
        self._step = 0

    def _made(self, seed: int) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self._device) for name, tensor in weights(seed, **self._shape).items()}

    def step(self, seed: int) -> dict[str, Any]:
        """Train in place, and publish the weights."""
        for name, tensor in weights(seed, **self._shape).items():
            self._tensors[name].copy_(tensor)
        return self._publish()

    def grow(self, seed: int) -> dict[str, Any]:
        """Have the weights in new memory behind the old, which stays, and publish them."""
        self._kept.append(self._tensors)
        self._tensors = self._made(seed)
        return self._publish()

    def move(self, seed: int) -> dict[str, Any]:
        """Give all memory back, have the weights in new memory, which may be at the same addresses, and publish."""
        self._tensors.clear()
        self._kept.clear()
        self._empty_cache()
        self._tensors = self._made(seed)
        return self._publish()

    def free(self, seed: int) -> dict[str, Any]:
        """Lend weights, free their memory, and have sinks take them."""
        lent = self._made(seed)
        stored = self._server.lend("freed", lent)
        for tensor in lent.values():
            tensor.untyped_storage().resize_(0)
        self._empty_cache()
        try:
            return self._update("freed", stored)
        finally:
            self._server.unregister("freed")

    def allocations(self, _: int) -> dict[str, Any]:
        """Where CUDA says that the weights lie: address, bytes and number of each allocation."""
        places = [(tensor.data_ptr(), tensor.nbytes) for tensor in self._tensors.values()]
        found = find_allocations({torch.device("cuda", torch.cuda.current_device())}, places)
        return {"allocations": [(each.address, each.nbytes, each.number) for each in found]}

    def _publish(self) -> dict[str, Any]:
        self._step += 1
        version = f"step-{self._step}"
        stored = self._server.lend(version, self._tensors)
        try:
            return self._update(version, stored)
        finally:
            self._server.unregister(version)

    def _update(self, version: str, stored: StoredVersion) -> dict[str, Any]:
        try:
            report = self._server.update(version, self._sinks)
        except CkptTransportError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        assert report is not None
        made = report.plan
        return {
            "in_place": all(map(made.lies_apart, made.buckets)),
            "kinds": [extent.kind.value for extent in stored.extents],
            "notes": list(made.notes),
            "transports": list(report.transports),
        }

    def _empty_cache(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def close(self) -> None:
        self._server.close()


def become(user: int) -> None:
    """Become that user. The interpreter may lie where only root can read it, so what is imported late is imported."""
    module, trained = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    for transport in ("auto", "gloo"):
        with (
            attach(module) as serving,
            ParameterServer(Config.load(transport=transport), rank=0, world_size=1) as server,
        ):
            server.publish("step-1", trained.state_dict(), [serving.address])
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sinks", nargs="+", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", type=json.loads, default={})
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--user", type=int, default=0, help="become that user, when all was imported")
    given = parser.parse_args()
    if given.user:
        become(given.user)
    trainer = Trainer(given.sinks, given.device, given.shape, Config.load(**{**PATIENT, **given.settings}))
    orders = {
        order.__name__: order for order in (trainer.step, trainer.grow, trainer.move, trainer.free, trainer.allocations)
    }
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order, seed = line.split()
        print(json.dumps(orders[order](int(seed))), flush=True)
    trainer.close()


if __name__ == "__main__":
    main()
