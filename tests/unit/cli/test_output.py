"""What commands print on narrow terminals, in encodings of few characters, and to those who do not listen."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from ckpt_transport.cli import listing, transports
from ckpt_transport.cli.encoding import LOOKALIKES, write_anything
from ckpt_transport.cli.output import Output, after_commit
from ckpt_transport.memory import MemoryKind
from ckpt_transport.transports.interface import FanOut, Reach, Traits


def listed() -> list[listing.Listed]:
    traits = Traits(
        reach=Reach.NETWORK,
        sends_from=frozenset({MemoryKind.PRIVATE, MemoryKind.SHARED, MemoryKind.CUDA}),
        maps_memory=False,
        fan_out=FanOut.CONSTANT,
        bandwidth=12.5e9,
        latency=123e-6,
    )
    return [
        listing.Listed("a_long_transport", True, "", "", traits, 7.5e9),
        listing.Listed("other", False, "no such library", "pip install it", None),
    ]


@pytest.mark.parametrize("width", range(24, 140, 3))
def test_given_a_terminal_of_any_width_when_transports_are_listed_then_nothing_is_cut(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = {item.name: item for item in listed()}
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("ckpt_transport.transports.registry.names", lambda: tuple(items))
    monkeypatch.setattr(listing, "_look_at", items.__getitem__)
    transports.transports()
    printed = capsys.readouterr().out
    words = set(printed.replace(",", " ").replace(";", " ").split())
    assert "…" not in printed
    assert words >= {"reach", "maps", "sends", "from", "fan-out", "GB/s", "out", "µs"}
    assert words >= {"network", "private", "shared", "cuda", "constant", "12.5", "7.5", "123"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_given_any_encoding_when_anything_is_printed_then_it_arrives_or_what_looks_like_it(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding))
    write_anything()
    text = "".join(map(chr, LOOKALIKES)) + "héllo ✓ \udcff"
    print(text, flush=True)
    arrived = written.getvalue().decode(encoding).rstrip("\n")
    assert len(arrived) >= len(text)
    for character, seen in zip(text, arrived[: len(LOOKALIKES)], strict=False):
        assert seen in (character, LOOKALIKES[ord(character)])
    assert arrived.endswith("\\udcff")


def test_given_a_closed_stream_when_something_is_printed_then_the_rest_is_dropped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    closed = io.StringIO()
    closed.close()
    output = Output(file=closed)
    output.print("one")
    output.print("two")
    assert capsys.readouterr().err.count("what follows is not printed") == 1


def test_given_a_committed_update_when_something_fails_afterwards_then_it_is_said_and_not_raised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with after_commit("it cannot be noted"):
        raise PermissionError("read-only")
    assert "the update is done, but it cannot be noted: PermissionError: read-only" in capsys.readouterr().err


def test_given_a_pipe_when_a_long_line_and_a_table_are_printed_then_neither_is_folded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    words, address = "word " * 40 + "end", f"ipc:///run/{'a' * 80}.sock"
    table = Table("address", "state")
    table.add_row(address, words)
    output = Output()
    output.print(words)
    output.print(table)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == words
    assert any(address in line and words in line for line in printed[1:])
