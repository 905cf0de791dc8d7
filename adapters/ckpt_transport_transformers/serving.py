"""Models of ``transformers serve`` are updatable from when they are loaded until they are unloaded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from transformers.cli.serving import model_manager

from ckpt_transport_transformers.attach import attach


def make_updatable(
    address: str = "", announce: Callable[[str], None] = lambda line: print(line, file=sys.stderr)
) -> None:
    """Have every model that transformers' server loads in this process be updatable.

    Args:
        address: where the first of them listens; empty for a new address, as the others have.
        announce: told for each model where it can be updated.
    """
    addresses = [address]

    class UpdatableModel(model_manager.TimedModel):
        """A loaded model, which is attached."""

        def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(model, *args, **kwargs)
            self._attached = attach(model, addresses.pop() if addresses else "", label=str(model.name_or_path))
            announce(f"{model.name_or_path} can be updated at {self._attached.address}")

        def delete_model(self) -> None:
            if self.model is not None:
                self._attached.close()
                addresses.append(address)
            super().delete_model()

    model_manager.TimedModel = UpdatableModel
