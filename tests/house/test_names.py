"""Names in docstrings, comments, messages and pages are names of something that is there."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import pytest

from tests.house.index import ROOT, Index, Text, index, module_name, tracked

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc|obj):`[~!]?(?:[^`<]*<)?([\w.]+)>?`")
QUALIFIED = re.compile(r"(?<![\w./-])((?:ckpt_transport(?:_\w+)?|benchmarks|tests)(?:\.[A-Za-z_]\w*)+)(?![\w-]*[/\w])")
QUOTED = re.compile(r"(?<!`)(?:``([^`\n]+)``|`([^`\n]+)`)(?!`)")
MEMBER = re.compile(r"([A-Z][a-z]\w+)\.([a-z_]\w*)(?:\(.*\))?")
WORD = re.compile(r"([A-Z][a-z0-9]+(?:[A-Z][a-z0-9]+)+|[a-z]+(?:_[a-z0-9]+)+)(?:\(\))?")
PATH = re.compile(
    r"(?<![\w./:@-])((?:docs|tests|benchmarks|examples|adapters|plugins|ckpt_transport)/[\w.-]+(?:/[\w.-]+)*/?)"
)
HISTORY = {ROOT / "CHANGELOG.md"}
ENDING = re.compile(r"\.(?:toml|json|py|md|[A-Z]+)$")
"""Of files, and of what stands for any name."""
ELSEWHERE = {
    *("codecs", "importlib", "os", "torch"),
    *("DataLoader", "DistributedDataParallel", "Fp8Config", "invoke_on_load", "query_key_value", "req_func", "tp_plan"),
    *("is_collective", "supports_p2p"),
    "process_routing_id_msg",
}
"""Names of other projects, and two that decision 1 turns down."""


def pages() -> Iterator[Text]:
    for page in tracked("*.md"):
        if page not in HISTORY and not page.is_relative_to(ROOT / "benchmarks"):
            for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
                yield Text(page, number, line)


def texts() -> Iterator[Text]:
    yield from index().texts
    yield from pages()


def groups() -> set[str]:
    """Groups of entry points, which look like modules."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["entry-points"])


def where(text: Text, name: str) -> str:
    return f"{text.file.relative_to(ROOT)}:{text.line}: {name}"


def is_there(known: Index, text: Text, name: str) -> bool:
    """Whether a name in a docstring means something: around it, in its module, in the project, or elsewhere."""
    module, (first, *rest) = module_name(text.file), name.split(".")
    if first in ELSEWHERE or known.find(module, name) is not None:
        return True
    if rest:
        homes = known.classes.get(first, [])
        return any(known.member(home, each, rest[0]) is not None for home, each in homes)
    around = [known.resolve(".".join((module, *text.scope[:depth]))) for depth in range(len(text.scope), 0, -1)]
    beside = known.modules[module].members.values()
    return any(each is not None and known.member(module, each, name) is not None for each in [*around, *beside])


def test_given_a_role_of_sphinx_then_it_leads_somewhere() -> None:
    known = index()
    found = [(text, name) for text in known.texts for name in ROLE.findall(text.text)]
    assert len(found) > 200
    assert not [where(text, name) for text, name in found if not is_there(known, text, name)]


@pytest.mark.parametrize(
    "name",
    [
        "ckpt_transport.replay.key.key_of",
        "ckpt_transport.planning.verify.proof.prove",
        "ckpt_transport.Engine.lead",
        "Engine.lead",
        "lead",
        "Audience",
    ],
)
def test_given_a_name_that_is_gone_then_it_is_found_out(name: str) -> None:
    file = ROOT / "ckpt_transport" / "engine" / "engine.py"
    assert not is_there(index(), Text(file, 1, "", ("Engine", "load")), name)


def test_given_a_qualified_name_then_it_is_there() -> None:
    known, entry_points = index(), groups()
    found = [(text, name) for text in texts() for name in QUALIFIED.findall(text.text)]
    assert len(found) > 100
    assert not [
        where(text, name)
        for text, name in found
        if name not in entry_points and not ENDING.search(name) and known.resolve(name) is None
    ]


def test_given_a_member_of_a_class_in_backticks_then_the_class_has_it() -> None:
    known = index()
    gone = []
    for text in texts():
        for quoted in (first or second for first, second in QUOTED.findall(text.text)):
            member = MEMBER.fullmatch(quoted)
            homes = known.classes.get(member[1], []) if member else []
            if member and homes and not any(known.member(home, each, member[2]) for home, each in homes):
                gone.append(where(text, quoted))
    assert not gone


def test_given_a_name_in_backticks_then_some_code_has_it() -> None:
    known = index()
    gone = []
    for text in texts():
        for quoted in (first or second for first, second in QUOTED.findall(text.text)):
            word = WORD.fullmatch(quoted)
            if word and word[1] not in known.words | ELSEWHERE:
                gone.append(where(text, quoted))
    assert not gone


def test_given_a_path_of_the_project_then_the_file_is_there() -> None:
    found = [(text, path.rstrip(".")) for text in texts() for path in PATH.findall(text.text)]
    assert len(found) > 50
    assert not [
        where(text, path) for text, path in found if not any((at / path).exists() for at in (ROOT, text.file.parent))
    ]
