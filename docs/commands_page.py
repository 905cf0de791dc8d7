"""The page about commands and their arguments."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator

from ckpt_transport.cli import app as cli
from docs.rendering import page, prose, table


def command_line() -> str:
    parts = [prose(cli.HELP)]
    for command in cli.app.registered_commands:
        assert command.callback is not None
        parts += [f"## ckpt-transport {command.name}", prose(inspect.getdoc(command.callback) or "")]
        rows = list(_parameters(command.callback))
        if rows:
            parts.append(table(("argument", "default", "meaning"), rows))
    return page("Commands", *parts)


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
