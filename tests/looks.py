"""Counts how often torch is asked about tensors: what depends on their number is to be asked once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode


class Looks(TorchFunctionMode):
    """Counts what this thread asks of tensors within the block, by name; one call that asks many counts as one.

    Attributes:
        counted: all of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        name = function.__name__
        self.counted[function.__self__.__name__ if name == "__get__" else name] += 1  # type: ignore[attr-defined]
        return function(*arguments, **(named or {}))

    def of_each(self, count: int) -> Counter[str]:
        """How often each of so many tensors was asked, for what all of them were."""
        return Counter({name: times // count for name, times in self.counted.items() if times >= count})
