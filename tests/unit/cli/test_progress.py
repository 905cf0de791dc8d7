"""A bar shows how far a command is, on terminals only."""

from __future__ import annotations

import io

from ckpt_transport.cli.output import Output
from ckpt_transport.cli.progress import bar


def test_given_a_terminal_then_a_bar_says_what_is_done_and_how_much_of_it() -> None:
    written = io.StringIO()
    terminal = Output(file=written, force_terminal=True, width=80)
    with bar(terminal, "simulating") as shown:
        shown(25, 100)
    said = written.getvalue()
    assert "simulating" in said
    assert " 25%" in said


def test_given_no_terminal_then_a_bar_shows_nothing() -> None:
    written = io.StringIO()
    pipe = Output(file=written, force_terminal=False)
    with bar(pipe, "simulating") as shown:
        shown(25, 100)
    assert written.getvalue() == ""
