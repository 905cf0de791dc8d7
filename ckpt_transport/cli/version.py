"""``ckpt-transport version`` asks sinks which version they serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Column, Table
from rich.text import Text

from ckpt_transport.cli.options import AsJson, ConfigFile
from ckpt_transport.cli.output import Output
from ckpt_transport.errors import JoinError

if TYPE_CHECKING:
    from ckpt_transport.service.questions import ServedVersion


def version(
    addresses: Annotated[list[str], typer.Argument(help="Addresses of sinks.", show_default=False)],
    digest: Annotated[
        bool, typer.Option("--digest", help="Have each read all that it serves, and show a digest of it.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds to wait for each answer; with --digest longer.", show_default="5, or 60 with --digest"
        ),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Ask sinks which version they serve, and which one they can go back to.

    Exit code 3 when one must not serve: it is tainted, or in doubt, which means that its coordinator is gone and that
    it holds its forward passes until others of that update answer, or another update comes. Else 1 when one does not
    answer.

    Sinks that serve the same bytes have the same digest. Ranks of one engine serve different parts; each is compared
    with the same rank of another engine. A sink that is being updated, or takes no update, says none:

        ckpt-transport version --digest ipc:///run/sink-0.sock ipc:///run/sink-1.sock
    """
    from ckpt_transport.config import Config
    from ckpt_transport.service.query import ask_versions
    from ckpt_transport.service.questions import ServedVersion

    answers = ask_versions(addresses, Config.load(config), timeout, digest=digest)
    output = Output()
    if as_json:
        rows = {
            address: {"error": str(answer)} if isinstance(answer, JoinError) else msgspec.to_builtins(answer)
            for address, answer in answers.items()
        }
        output.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    else:
        digests = (Column("digest", overflow="fold"),) if digest else ()
        table = Table(
            Column("address", overflow="fold"), "sink", "version", *digests, "can go back to",
            Column("state", overflow="fold"),
        )  # fmt: skip
        for address, answer in answers.items():
            label, served, kept, state = _row(answer)
            shown = (answer.digest if isinstance(answer, ServedVersion) else "",) if digest else ()
            table.add_row(address, label, served, *shown, kept, state)
        output.print(table)
    said = [answer for answer in answers.values() if not isinstance(answer, JoinError)]
    if any(answer.tainted or answer.in_doubt for answer in said):
        raise typer.Exit(3)
    if len(said) < len(answers):
        raise typer.Exit(1)


def _row(answer: ServedVersion | JoinError) -> tuple[str, str, str, Text]:
    """Sink, version, version before and state."""
    if isinstance(answer, JoinError):
        return "", "", "", Text(str(answer), "red")
    if answer.in_doubt:
        state = Text.assemble(("in doubt", "red"), f": {answer.in_doubt}")
    elif answer.update:
        state = Text(f"being updated to {answer.update}")
    elif answer.tainted:
        state = Text.assemble(("tainted", "red"), f": {answer.tainted}")
    else:
        state = Text("serves", "green")
    if answer.stuck:
        state = Text.assemble(state, ", ", ("and takes no update", "red"), f": {answer.stuck}")
    if answer.warm_up:
        state = Text.assemble(state, f"; {answer.warm_up}")
    kept = ", ".join(filter(None, (answer.previous, *answer.earlier)))
    return answer.label, answer.version or "(not named)", kept, state
