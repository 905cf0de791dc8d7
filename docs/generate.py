"""Write the pages under ``docs/reference`` from the code: settings, commands, errors, interfaces, messages.

``python docs/generate.py`` writes them; ``python docs/generate.py --check`` only says which are not current, and exits
with 1 when one is not.
"""

from __future__ import annotations

import argparse
import ast
import enum
import inspect
import itertools
import os
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

from ckpt_transport import config, errors, spi
from ckpt_transport.cli import app as cli
from ckpt_transport.control import messages as wire
from ckpt_transport.service import questions
from ckpt_transport.transports import options, registry
from ckpt_transport.update import messages
from docs import engines
from docs.rendering import flat, items, page, prose, table

REFERENCE = Path(__file__).parent / "reference"
NESTED = "    "
"""What every reader of markdown takes for a part of the item above."""

OWN_TRANSPORTS = {entry.name for entry in distribution("ckpt-transport").entry_points if entry.group == registry.GROUP}

PYTHON = (
    ("ckpt_transport", ""),
    ("ckpt_transport_fp8", ""),
    ("ckpt_transport_sglang", ""),
    ("ckpt_transport_torch", ""),
    ("ckpt_transport_transformers", ""),
    ("ckpt_transport_vllm", ""),
)
PLANNING = (
    (
        "ckpt_transport.planning",
        "plan verify explain Settings Plan Manifest TensorSpec Conversion Topology RankInfo Role",
    ),
)
TESTING = (("ckpt_transport.testing", ""), ("ckpt_transport.testing.engine", ""))


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say what is not current")
    only_check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        path, text = REFERENCE / name, make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path)
        if not only_check:
            path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{path.relative_to(REFERENCE.parent.parent)} {'is not current' if only_check else 'written'}")
    return int(bool(stale and only_check))


# -- pages ------------------------------------------------------------------------------------------------------------


def configuration() -> str:
    rows = [
        (f"`{name}`", kind, f"`{default}`" if default else "empty", meaning, _variable(name))
        for name, kind, default, meaning in config.describe()
    ]
    return page(
        "Settings",
        prose(config.__doc__ or ""),
        table(("setting", "type", "default", "meaning", "environment variable"), rows),
        f"`{config.ENV_FILE}` names the TOML file. Times are seconds; sizes are bytes, or text such as `64MiB`.",
        "## Settings of transports",
        prose(options.__doc__ or ""),
        *_own_settings(),
    )


def _variable(name: str) -> str:
    return "see below" if name == config.TRANSPORTS else f"`{config.ENV_PREFIX}{name.upper()}`"


def _own_settings() -> Iterator[str]:
    """A table for each transport of this distribution that has settings of its own."""
    for name in registry.names():
        transport = registry.load(name) if name in OWN_TRANSPORTS else None
        rows = list(options.describe(transport)) if transport is not None else []
        if rows:
            variable = f"{config.ENV_PREFIX}{name.upper()}_"
            yield f"### {name}"
            yield table(
                ("setting", "default", "meaning", "environment variable"),
                [
                    (f"`{setting}`", f"`{default}`" if default else "empty", meaning, f"`{variable}{setting.upper()}`")
                    for setting, default, meaning in rows
                ],
            )


def command_line() -> str:
    parts = [prose(cli.HELP)]
    for command in cli.app.registered_commands:
        assert command.callback is not None
        parts += [f"## ckpt-transport {command.name}", prose(inspect.getdoc(command.callback) or "")]
        rows = list(_parameters(command.callback))
        if rows:
            parts.append(table(("argument", "default", "meaning"), rows))
    return page("Commands", *parts)


def error_tree() -> str:
    rows = []
    for name, kind in vars(errors).items():
        if _is_error(kind):
            parents = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
            meaning, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")
            rows.append(
                (
                    f"`{name}`",
                    parents,
                    " ".join([flat(meaning), *(items(attributes.splitlines()) if attributes else ())]),
                )
            )
    return page(
        "Errors",
        prose(errors.__doc__ or ""),
        "\n".join(["```text", *_tree([errors.CkptTransportError]), "```"]),
        table(("error", "is a", "meaning"), rows),
        "What they mean to whoever runs an update: [handle failures](../how-to/handle-failures.md).",
    )


def _tree(kinds: Sequence[type[BaseException]], indent: str = "") -> Iterator[str]:
    """The names of classes, and below each those that derive from it."""
    for kind in kinds:
        below = [each for each in kind.__subclasses__() if _is_error(each)]
        yield f"{indent}{kind.__name__}"
        yield from _tree(below, indent + "    ")


def wire_messages() -> str:
    parts = [prose(wire.__doc__ or ""), "## Of every mailbox"]
    parts += _messages(wire)
    parts += ["## Of an update", prose(messages.__doc__ or ""), _exchanges()]
    parts += _messages(messages)
    parts += ["## At any time", prose(questions.__doc__ or "")]
    parts += _messages(questions)
    for name in ("PARTICIPANT", "COORDINATOR"):
        understood = ", ".join(f"`{kind.__name__}`" for kind in getattr(questions, name))
        parts.append(f"A {name.lower()} understands {understood}.")
    return page("Messages on the wire", *parts)


def _exchanges() -> str:
    rows = [
        (
            f"`{exchange.order.__name__}`",
            f"`{exchange.answer.__name__}`",
            "; ".join(exchange.during) if len(exchange.during) < len(messages.State) else "is in the update",
            exchange.then or "has left the update",
        )
        for exchange in messages.EXCHANGES
    ]
    return table(("order", "answer", "followed by a member that", "which then"), rows)


def api(title: str, modules: Iterable[tuple[str, str]]) -> Callable[[], str]:
    """A page with the public names of modules, or with those that are named. Errors have a page of their own."""

    def make() -> str:
        parts = []
        for name, chosen in modules:
            module = import_module(name)
            parts.append(f"## Module `{name}`")
            if not chosen:
                parts.append(prose(module.__doc__ or ""))
            for public in chosen.split() or _public(module):
                if not _is_error(getattr(module, public)):
                    parts += _described(public, getattr(module, public), module)
        return page(title, *parts)

    return make


IN_FULL = ("ckpt_transport.transports", "ckpt_transport.memory.buffer", "ckpt_transport.service.fleet")
"""Homes of what authors implement and are given. Of other names a sentence says what each is."""
NOT_IN_FULL = "ckpt_transport.transports.rdma"


def for_authors() -> str:
    """The page of ``ckpt_transport.spi``."""
    parts, rows = [prose(spi.__doc__ or "")], []
    for name in spi.__all__:
        value = getattr(spi, name)
        home = getattr(value, "__module__", None) or ""
        if home.startswith(IN_FULL) and not home.startswith(NOT_IN_FULL):
            parts += _described(name, value, spi)
        else:
            rows.append(
                (f"`{name}`", home.split(".")[1] if home.startswith("ckpt_transport.") else "", _first_sentence(name))
            )
    rows.sort(key=lambda row: row[1])
    parts += ["## What else there is", table(("name", "room", "what it is or does"), rows)]
    return page("Interface for authors", "## Module `ckpt_transport.spi`", *parts)


def _first_sentence(name: str) -> str:
    value = getattr(spi, name)
    own = inspect.ismodule(value) or getattr(value, "__name__", "") == name
    doc = (inspect.getdoc(value) if own else _note(name, spi)) or f"`{value!r}`"
    return re.split(r"(?<=\.) ", flat(doc.split("\n\n")[0]))[0]


def _is_error(value: object) -> bool:
    return isinstance(value, type) and value.__module__ == errors.__name__


# -- from the code ----------------------------------------------------------------------------------------------------


def _public(module: ModuleType) -> Sequence[str]:
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


def _described(name: str, value: object, module: ModuleType) -> Iterator[str]:
    doc = inspect.getdoc(value) or ""
    if inspect.isclass(value):
        bases = [base.__name__ for base in value.__bases__ if base not in (object, typing.Protocol)]
        yield f"### {name}" + (f" ({', '.join(bases)})" if bases else "")
        if "__init__" in vars(value) and not getattr(value, "_is_protocol", False):
            yield f"```text\n{name}{_signature(value.__init__, drop_self=True)}\n```"
        yield prose(doc)
        if issubclass(value, enum.Enum):
            yield "\n".join(f"- `{member.name}`{_meaning(value, member.name)}" for member in value)
        elif members := list(_members(value)):
            yield "**Members**"  # a list of its own, not the end of the one above it
            yield from members
    elif inspect.ismodule(value):
        yield f"### {name} (module)"
        yield prose(doc)
        yield "\n".join(f"- `{each}`: {flat(_first_line(vars(value)[each]))}" for each in _public(value))
    elif inspect.isroutine(value):
        yield f"### {name}"
        yield f"```text\n{name}{_signature(value)}\n```"
        yield prose(doc)
    else:
        yield f"### {name}"
        yield prose(_note(name, module)) or f"`{value!r}`"
        if isinstance(value, tuple) and all(hasattr(item, "promise") for item in value):
            yield "\n".join(f"- `{item.name}`: {item.promise}" for item in value)


def _first_line(value: object) -> str:
    return (inspect.getdoc(value) or "").partition("\n")[0]


def _members(kind: type) -> Iterator[str]:
    for name, member in vars(kind).items():
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


def _note(name: str, module: ModuleType) -> str:
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


def _messages(module: ModuleType) -> Iterator[str]:
    for name in _public(module):
        kind = getattr(module, name)
        if isinstance(kind, type) and issubclass(kind, wire.Message) and kind is not wire.Message:
            fields = ", ".join(f"{field}: {_type(hint)}" for field, hint in typing.get_type_hints(kind).items())
            doc = kind.__doc__
            yield f"### {name}\n\n`{name}({fields})`"
            if doc and kind.__dict__.get("__doc__"):
                yield prose(inspect.cleandoc(doc))


def _type(hint: object) -> str:
    return (
        hint.__name__
        if isinstance(hint, type) and not typing.get_args(hint)
        else re.sub(r"(\w+\.)+(?=\w)", "", str(hint))
    )


def _parameters(function: Callable[..., object]) -> Iterator[tuple[str, str, str]]:
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        hint, info = typing.get_args(parameter.annotation)
        is_flag = hint is bool
        if type(info).__name__ == "ArgumentInfo":
            names = parameter.name.upper()
        else:
            given = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
            names = ", ".join(given) or "--" + parameter.name.replace("_", "-")
            names += "" if is_flag else " VALUE"
        if parameter.default is inspect.Parameter.empty:
            default = "required"
        elif isinstance(info.show_default, str):
            default = f"`{info.show_default}`"
        else:
            default = "none" if parameter.default is None else "off" if is_flag else f"`{parameter.default}`"
        yield f"`{names}`", default, info.help or ""


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "commands.md": command_line,
    "errors.md": error_tree,
    "messages.md": wire_messages,
    "python.md": api("Python interface", PYTHON),
    "spi.md": for_authors,
    "planning.md": api("Planning", PLANNING),
    "testing.md": api("Testing", TESTING),
    "engines.md": engines.rendered,
}

if __name__ == "__main__":
    sys.exit(main())
