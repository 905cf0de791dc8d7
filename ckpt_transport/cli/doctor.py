"""``ckpt-transport doctor`` says what keeps updates from working here, and what helps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.text import Text

from ckpt_transport.cli.options import AsJson, ConfigFile, Endpoints, Engine, check_together
from ckpt_transport.cli.output import Output

if TYPE_CHECKING:
    from ckpt_transport.diagnosis import Finding

MARKS = {"ok": ("✓", "green"), "note": ("·", "blue"), "warning": ("!", "yellow"), "problem": ("✗", "bold red")}


def doctor(
    addresses: Annotated[list[str] | None, typer.Argument(help="Addresses of sinks.", show_default=False)] = None,
    engine: Engine = None,
    endpoint: Endpoints = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each sink's answer.")] = 5.0,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Look at this machine and at a fleet, and say what keeps updates from working, each with its cure.

    Where sinks or endpoints are given, it looks at them, too:

        ckpt-transport doctor ADDRESS ADDRESS

    Exit code 1 when there is a problem, which makes updates fail. A warning makes them slow, or fail in some fleets.
    """
    from ckpt_transport.config import Config
    from ckpt_transport.diagnosis import Severity, look_at_engines, look_at_machine, look_at_sinks

    check_together(engine, endpoint)
    output = Output()
    findings = list(look_at_machine())
    if addresses or engine is not None:
        settings = Config.load(config)
        findings += look_at_sinks(addresses or (), settings, timeout)
        findings += look_at_engines(engine, endpoint or (), settings) if engine is not None else ()
    if as_json:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(findings)))
    else:
        for finding in findings:
            _show(output, finding)
    if any(finding.severity is Severity.PROBLEM for finding in findings):
        raise typer.Exit(1)


def _show(output: Output, finding: Finding) -> None:
    told = output.render_str(f" {finding.topic}: {finding.said}", highlight=True)
    output.print(Text.assemble(MARKS[finding.severity], told), soft_wrap=True)
    if finding.cure:
        output.print(f"  {finding.cure}", style="dim", soft_wrap=True, highlight=False)
