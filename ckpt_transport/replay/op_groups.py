"""Sorts what a recorder noted into copies, which can run in any order, and groups of operations, which keep theirs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from msgspec.structs import replace

from ckpt_transport.replay.coverage import Writer
from ckpt_transport.replay.layout import Copy, Fill, Operation, OpGroup, Owner, OwnerKind, Ref
from ckpt_transport.replay.recorder import Event


def gather(events: Sequence[Event], rewritten: set[int]) -> list[Writer]:
    """Sort events into copies, fills, and groups of operations that need each other's results.

    All are in the order of their first event. A target that operations read again, or change in place, is like a
    result: all that writes it is one group. Operations that write no target have no effect and are left out, and so is
    a copy that is done a second time.
    """
    groups = _Groups()
    operations: list[tuple[int, Operation]] = []
    writers: list[tuple[int, Writer]] = []
    for number, event in enumerate(events):
        if not isinstance(event, Operation):
            if event.write.index not in rewritten:
                writers.append((number, event))
                continue
            event = _as_operation(event)
        nodes: list[Owner | int] = [number]
        nodes += [Owner(OwnerKind.RESULT, result) for result in event.results]
        for ref in refs(event):
            if ref.kind is OwnerKind.RESULT or (ref.kind is OwnerKind.TARGET and ref.index in rewritten):
                nodes.append(Owner(ref.kind, ref.index))
        groups.join(nodes)
        operations.append((number, event))
    together: defaultdict[object, list[tuple[int, Operation]]] = defaultdict(list)
    for number, operation in operations:
        together[groups.of(number)].append((number, operation))
    writers += [
        (members[0][0], _op_group([operation for _, operation in members]))
        for members in together.values()
        if any(operation.written is not None for _, operation in members)
    ]
    ordered = [writer for _, writer in sorted(writers, key=lambda item: item[0])]
    repeated = {writer: n for n, writer in reversed(list(enumerate(ordered))) if isinstance(writer, Copy)}
    return [writer for n, writer in enumerate(ordered) if not isinstance(writer, Copy) or repeated[writer] == n]


def refs(operation: Operation) -> Iterator[Ref]:
    """Every tensor that an operation is called with."""

    def within(values: Iterable[Any]) -> Iterator[Ref]:
        for value in values:
            if isinstance(value, Ref):
                yield value
            elif isinstance(value, tuple):
                yield from within(value)

    return within((*operation.args, *operation.kwargs.values()))


def _as_operation(event: Copy | Fill) -> Operation:
    if isinstance(event, Fill):
        return Operation(torch.ops.aten.fill_.Scalar, (event.write, event.value), {}, ())
    return Operation(torch.ops.aten.copy_.default, (event.write, event.read), {}, ())


def _op_group(operations: Sequence[Operation]) -> OpGroup:
    numbers: dict[int, int] = {}
    for operation in operations:
        for result in operation.results:
            numbers[result] = len(numbers)

    def renumbered(value: Any) -> Any:
        if isinstance(value, Ref) and value.kind is OwnerKind.RESULT:
            return replace(value, index=numbers[value.index])
        return tuple(map(renumbered, value)) if isinstance(value, tuple) else value

    sources = {ref.index for operation in operations for ref in refs(operation) if ref.kind is OwnerKind.SOURCE}
    targets = {ref.index for operation in operations for ref in refs(operation) if ref.kind is OwnerKind.TARGET}
    own = tuple(
        Operation(
            operation.op,
            renumbered(operation.args),
            {name: renumbered(value) for name, value in operation.kwargs.items()},
            tuple(numbers[result] for result in operation.results),
        )
        for operation in operations
    )
    return OpGroup(tuple(sorted(sources)), tuple(sorted(targets)), own)


class _Groups:
    """Disjoint sets."""

    def __init__(self) -> None:
        self._parent: dict[object, object] = {}

    def of(self, node: object) -> object:
        root = node
        while (parent := self._parent.setdefault(root, root)) is not root:
            root = parent
        while self._parent[node] is not root:
            self._parent[node], node = root, self._parent[node]
        return root

    def join(self, nodes: Sequence[object]) -> None:
        first = self.of(nodes[0])
        for node in nodes[1:]:
            self._parent[self.of(node)] = first
