"""What docstrings, signatures and strings under assignments say of a Python name, as Markdown."""

from __future__ import annotations

import ast
import enum
import inspect
import itertools
import os
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType

from ckpt_transport import errors
from ckpt_transport.spi import EngineFleet
from docs.rendering import flat, prose

NESTED = "    "
"""What every reader of markdown takes for a part of the item above."""


def is_error(value: object) -> bool:
    return isinstance(value, type) and value.__module__ == errors.__name__


def public_names(module: ModuleType) -> Sequence[str]:
    declared: Sequence[str] | None = getattr(module, "__all__", None)
    if declared is not None:
        return declared
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def described(name: str, value: object, module: ModuleType) -> Iterator[str]:
    doc = inspect.getdoc(value) or ""
    if inspect.isclass(value):
        bases = [base.__name__ for base in value.__bases__ if base not in (object, typing.Protocol)]
        yield f"### {name}" + (f" ({', '.join(bases)})" if bases else "")
        if "__init__" in vars(value) and not getattr(value, "_is_protocol", False):
            yield f"```text\n{name}{_signature(value.__init__, drop_self=True)}\n```"
        yield prose(doc)
        if issubclass(value, enum.Enum):
            yield "\n".join(f"- `{member.name}`{_meaning(value, member.name)}" for member in value)
        elif members := [*_taken_over(value, module), *_members(value)]:
            yield "**Members**"  # a list of its own, not the end of the one above it
            yield from members
    elif inspect.ismodule(value):
        yield f"### {name} (module)"
        yield prose(doc)
        yield "\n".join(f"- `{each}`: {flat(_first_line(vars(value)[each]))}" for each in public_names(value))
    elif inspect.isroutine(value):
        yield f"### {name}"
        yield f"```text\n{name}{_signature(value)}\n```"
        yield prose(doc)
    else:
        yield f"### {name}"
        yield prose(note(name, module)) or f"`{value!r}`"
        if isinstance(value, tuple) and all(hasattr(item, "promise") for item in value):
            yield "\n".join(f"- `{item.name}`: {item.promise}" for item in value)


def _taken_over(kind: type, module: ModuleType) -> Iterator[str]:
    """Public members from bases that users of a class do not import: those in its room, and the base of all fleets."""
    room, public = kind.__module__.rpartition(".")[0], set(public_names(module))
    for base in kind.__mro__[1:]:
        if (base.__module__.rpartition(".")[0] == room or base is EngineFleet) and base.__name__ not in public:
            own = {name: member for name, member in vars(base).items() if getattr(kind, name) is getattr(base, name)}
            yield from _members_of(base, {name: member for name, member in own.items() if not name.startswith("_")})


def _first_line(value: object) -> str:
    return (inspect.getdoc(value) or "").partition("\n")[0]


def _members(kind: type) -> Iterator[str]:
    yield from _members_of(kind, vars(kind))


def _members_of(kind: type, members: Mapping[str, object]) -> Iterator[str]:
    for name, member in members.items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if name.startswith("__"):
            continue
        if isinstance(member, property) and not name.startswith("_"):
            doc = inspect.getdoc(member)
            yield f"- **{name}** (property)" + (f": {flat(doc)}" if doc else "")
        elif inspect.isfunction(function) and (not name.startswith("_") or _for_authors(kind, function)):
            marks = [mark for mark, is_so in _marks(member, function).items() if is_so]
            yield f"- **{name}**`{_signature(function, drop_self=not isinstance(member, staticmethod))}`" + (
                f" ({', '.join(marks)})" if marks else ""
            )
            if function.__doc__:
                yield textwrap.indent(prose(inspect.getdoc(function) or ""), NESTED)


def _for_authors(kind: type, function: Callable[..., object]) -> bool:
    """Whether an underscored method is part of what plugin authors write."""
    if kind.__module__ == "ckpt_transport.transports.interface":
        return kind.__name__ == "Endpoint" and bool(function.__doc__)
    return kind.__module__.startswith(("ckpt_transport.transports", "ckpt_transport.service.fleet")) and (
        getattr(function, "__isabstractmethod__", False) or "override" in (function.__doc__ or "")
    )


def _marks(member: object, function: Callable[..., object]) -> dict[str, bool]:
    return {
        "abstract": getattr(function, "__isabstractmethod__", False),
        "class method": isinstance(member, classmethod),
        "static method": isinstance(member, staticmethod),
        "coroutine": inspect.iscoroutinefunction(function),
    }


def _meaning(kind: type[enum.Enum], member: str) -> str:
    text = _documented(textwrap.dedent(inspect.getsource(kind))).get(member)
    return f": {flat(text)}" if text else ""


def _documented(source: str) -> dict[str, str]:
    """The strings under assignments, by the name that is assigned."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for before, after in itertools.pairwise(body):
            if not isinstance(before, ast.Assign | ast.AnnAssign) or not isinstance(after, ast.Expr):
                continue
            targets = before.targets if isinstance(before, ast.Assign) else [before.target]
            for target in targets:
                if isinstance(target, ast.Name) and isinstance(after.value, ast.Constant):
                    found[target.id] = inspect.cleandoc(str(after.value.value))
    return found


def note(name: str, module: ModuleType) -> str:
    """The string under the assignment of a module's name, here or where the module takes it from."""
    sources = [
        module,
        *(value for name, value in sorted(sys.modules.items()) if name.startswith("ckpt_transport.")),
    ]
    notes = (_documented(inspect.getsource(source)).get(name) for source in sources)
    return next((note for note in notes if note), "")


class _Bare(str):
    """An annotation that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _signature(function: Callable[..., object], *, drop_self: bool = False) -> str:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1 if drop_self else 0 :]
    shown = [p.replace(annotation=_Bare(p.annotation)) if isinstance(p.annotation, str) else p for p in parameters]
    shown = [p.replace(default=_short(p.default, function)) for p in shown]
    returns = signature.return_annotation
    bare = _Bare(returns) if isinstance(returns, str) else returns
    text = str(signature.replace(parameters=shown, return_annotation=bare))
    text = re.sub(r"<function [\w.]+\.<lambda> at 0x\w+>", "...", text)
    text = text.replace(repr(os.environ), "os.environ")
    return re.sub(r"<(?:function|class) '?(?:\w+\.)*(\w+)'?(?: at 0x\w+)?>", r"\1", text)


def _short(default: object, function: Callable[..., object]) -> object:
    """A default as a signature shows it: a tuple that its module has a name for, by that name."""
    if not isinstance(default, tuple) or not default:
        return default
    names = (name for name, value in inspect.unwrap(function).__globals__.items() if value is default)
    return next(map(_Bare, names), default)
