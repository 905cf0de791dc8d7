"""From what a recorder noted to copies that can run in any order and programs that must run in theirs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from ckpt_transport.replay.coverage import Writer
from ckpt_transport.replay.layout import Argument, Copy, Fill, Items, Place, Program, Ref, Step
from ckpt_transport.replay.recorder import Event


def gather(events: Sequence[Event], rewritten: set[int]) -> list[Writer]:
    """Copies and fills as they are; steps that need each other's results in programs, in the order of the first step.

    A target that steps read again, or change in place, is like a result: all that writes it is one program. Steps that
    write no target have no effect and are left out, and so is a copy that is done a second time.
    """
    groups = _Groups()
    steps: list[tuple[int, Step]] = []
    writers: list[tuple[int, Writer]] = []
    for number, event in enumerate(events):
        if not isinstance(event, Step):
            if event.target not in rewritten:
                writers.append((number, event))
                continue
            event = _as_step(event)
        nodes: list[tuple[Place, int] | int] = [number]
        nodes += [(Place.RESULT, result) for result in event.results]
        for ref in refs(event):
            if ref.place is Place.RESULT or (ref.place is Place.TARGET and ref.index in rewritten):
                nodes.append((ref.place, ref.index))
        groups.join(nodes)
        steps.append((number, event))
    together: defaultdict[object, list[tuple[int, Step]]] = defaultdict(list)
    for number, step in steps:
        together[groups.of(number)].append((number, step))
    writers += [
        (members[0][0], _program([step for _, step in members]))
        for members in together.values()
        if any(_target_of(step) is not None for _, step in members)
    ]
    ordered = [writer for _, writer in sorted(writers, key=lambda item: item[0])]
    repeated = {writer: n for n, writer in reversed(list(enumerate(ordered))) if isinstance(writer, Copy)}
    return [writer for n, writer in enumerate(ordered) if not isinstance(writer, Copy) or repeated[writer] == n]


def refs(step: Step) -> Iterator[Ref]:
    """Every tensor that a step is called with."""

    def within(value: Argument) -> Iterator[Ref]:
        if isinstance(value, Ref):
            yield value
        elif isinstance(value, Items):
            for item in value.items:
                yield from within(item)

    for value in (*step.args, *step.kwargs.values()):
        yield from within(value)


def written_by(program: Program) -> list[Ref]:
    """What a program writes of targets, each place once."""
    return list(dict.fromkeys(ref for step in program.steps if (ref := _target_of(step)) is not None))


def _as_step(event: Copy | Fill) -> Step:
    to = Ref(Place.TARGET, event.target, event.shape, event.write)
    if isinstance(event, Fill):
        return Step("aten::fill_.Scalar", (to, event.value), {}, ())
    of = Ref(Place.SOURCE, event.source, event.shape, event.read)
    return Step("aten::copy_.default", (to, of), {}, ())


def _target_of(step: Step) -> Ref | None:
    """What a step writes of a target, if it does."""
    written = step.args[0] if step.args and not step.results else None
    return written if isinstance(written, Ref) and written.place is Place.TARGET else None


def _program(steps: Sequence[Step]) -> Program:
    numbers: dict[int, int] = {}
    for step in steps:
        for result in step.results:
            numbers[result] = len(numbers)

    def renumbered(value: Argument) -> Argument:
        if isinstance(value, Ref) and value.place is Place.RESULT:
            return Ref(value.place, numbers[value.index], value.shape, value.walk)
        if isinstance(value, Items):
            return Items(tuple(renumbered(item) for item in value.items))
        return value

    sources = {ref.index for step in steps for ref in refs(step) if ref.place is Place.SOURCE}
    targets = {ref.index for step in steps for ref in refs(step) if ref.place is Place.TARGET}
    own = tuple(
        Step(
            step.op,
            tuple(renumbered(value) for value in step.args),
            {name: renumbered(value) for name, value in step.kwargs.items()},
            tuple(numbers[result] for result in step.results),
        )
        for step in steps
    )
    return Program(tuple(sorted(sources)), tuple(sorted(targets)), own)


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
