"""An index of what the project defines, read from its syntax trees without importing anything."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("plugins", "adapters", "examples/third_party_transport")
"""Folders that are on the path, besides the root."""
Node = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Definition:
    """A module, class, function or value: what it defines, what it is based on, or what it stands for."""

    members: dict[str, Definition] = field(default_factory=dict)
    bases: list[str] = field(default_factory=list)
    alias: str = ""


@dataclass(frozen=True)
class Text:
    """Words for people: a docstring, a comment, a message or a page."""

    file: Path
    line: int
    text: str
    scope: tuple[str, ...] = ()
    """The classes and functions around it."""


@cache
def tracked(*patterns: str) -> tuple[Path, ...]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file())


def module_name(file: Path) -> str:
    relative = file.relative_to(ROOT)
    for source in SOURCES:
        if relative.is_relative_to(source):
            relative = relative.relative_to(source)
    return ".".join(relative.with_suffix("").parts).removesuffix(".__init__")


class Index:
    """All definitions of the project, by dotted name, and all texts of its code."""

    def __init__(self) -> None:
        self.modules: dict[str, Definition] = {}
        self.words: set[str] = set()
        """Identifiers, and words of strings that are no docstrings."""
        self.texts: list[Text] = []
        for file in tracked("*.py"):
            source = file.read_text(encoding="utf-8")
            self._add(file, ast.parse(source))
            for number, line in enumerate(source.splitlines(), 1):
                _, mark, comment = line.partition("# ")
                if mark:
                    self.texts.append(Text(file, number, comment))
        for name in sorted(self.modules):
            parent, _, last = name.rpartition(".")
            self.words.add(last)
            if parent in self.modules:
                self.modules[parent].members.setdefault(last, self.modules[name])

    def _add(self, file: Path, tree: ast.Module) -> None:
        self.modules[module_name(file)] = self._define(file, tree, ())
        docstrings = {id(text.node) for text in _docstrings(tree)}
        for node in ast.walk(tree):
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                    self.words.add(name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                    self.words.update((name, name.removeprefix("check_")))
                case ast.alias(name=name):
                    self.words.update(name.split("."))
                case ast.Constant(value=str(value)) if id(node) not in docstrings:
                    self.words.update(value.replace(".", " ").replace("/", " ").replace("'", " ").split())
                    if " " in value:
                        self.texts.append(Text(file, node.lineno, value))
        self.texts += [Text(file, each.node.lineno, str(each.node.value), each.scope) for each in _docstrings(tree)]

    def _define(self, file: Path, node: Node, scope: tuple[str, ...]) -> Definition:
        found = Definition()
        if isinstance(node, ast.ClassDef):
            found.bases = [ast.unparse(base).partition("[")[0] for base in node.bases]
        for child in _statements(node.body):
            match child:
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    inner = self._define(file, child, (*scope, child.name))
                    if isinstance(node, ast.ClassDef) and not isinstance(child, ast.ClassDef):
                        found.members.update(_attributes(child))
                    found.members[child.name] = inner
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found.members[name] = Definition()
                case ast.Assign(targets=targets):
                    names = [each for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
                    found.members.update({each.id: Definition() for each in names})
                case ast.ImportFrom(module=module, names=names):
                    for each in names:
                        found.members[each.asname or each.name] = Definition(alias=f"{module}.{each.name}")
                case ast.Import(names=names):
                    for each in names:
                        found.members[each.asname or each.name.partition(".")[0]] = Definition(
                            alias=each.name if each.asname else each.name.partition(".")[0]
                        )
        return found

    @cached_property
    def packages(self) -> frozenset[str]:
        return frozenset(name.partition(".")[0] for name in self.modules)

    @cached_property
    def classes(self) -> dict[str, list[tuple[str, Definition]]]:
        """All classes by their own name, each with its module."""
        found: dict[str, list[tuple[str, Definition]]] = {}
        for module, definition in self.modules.items():
            for name, member in definition.members.items():
                if name[:1].isupper() and not member.alias:
                    found.setdefault(name, []).append((module, member))
        return found

    @cached_property
    def homes(self) -> dict[int, str]:
        """The module that defines a class, by the number of its definition."""
        return {id(definition): module for found in self.classes.values() for module, definition in found}

    def resolve(self, dotted: str, depth: int = 0) -> Definition | None:
        """What a full name stands for; None for nothing. What other projects define is an empty definition."""
        first, *_ = parts = dotted.split(".")
        if first not in self.packages or depth > 9:
            return Definition()
        for length in range(len(parts), 0, -1):
            module = ".".join(parts[:length])
            if module in self.modules:
                return self._walk(module, self.modules[module], parts[length:], depth)
        return None

    def _walk(self, module: str, at: Definition, parts: list[str], depth: int) -> Definition | None:
        for part in parts:
            following = self.member(module, at, part, depth)
            if following is None:
                return None
            at = following
        return at

    def member(self, module: str, of: Definition, name: str, depth: int = 0) -> Definition | None:
        """A member of a definition in a module, or of one of its bases in this project."""
        if of.alias:
            target = self.resolve(of.alias, depth + 1)
            return None if target is None else self.member(of.alias.rpartition(".")[0], target, name, depth + 1)
        if name in of.members:
            found = of.members[name]
            return self.resolve(found.alias, depth + 1) if found.alias else found
        for base in of.bases:
            known = self.find(self.homes.get(id(of), module), base, depth + 1)
            if known is None:
                continue
            inherited = self.member(module, known, name, depth + 1)
            if inherited is not None:
                return inherited
        return None

    def find(self, module: str, dotted: str, depth: int = 0) -> Definition | None:
        """What a name means that is written in a module: one that it defines or imports, or else a full one."""
        first, *rest = dotted.split(".")
        here = self.modules[module].members if module in self.modules else {}
        if first in here:
            return self._walk(module, Definition(members=here), [first, *rest], depth)
        return self.resolve(dotted, depth) if first in self.packages else None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, also those under conditions."""
    for child in body:
        yield child
        if isinstance(child, ast.If | ast.Try | ast.With):
            yield from _statements([each for each in ast.iter_child_nodes(child) if isinstance(each, ast.stmt)])


def _attributes(method: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, Definition]:
    """What a method sets of ``self``."""
    stored = (each for each in ast.walk(method) if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store))
    return {each.attr: Definition() for each in stored if isinstance(each.value, ast.Name)}


@dataclass(frozen=True)
class _Docstring:
    node: ast.Constant
    scope: tuple[str, ...]


def _docstrings(node: Node, scope: tuple[str, ...] = ()) -> Iterator[_Docstring]:
    """Docstrings, those of values included, which stand behind them."""
    for child in _statements(node.body):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant) and isinstance(child.value.value, str):
            yield _Docstring(child.value, scope)
        elif isinstance(child, NODES) and not isinstance(child, ast.Module):
            yield from _docstrings(child, (*scope, child.name))


index = cache(Index)
