"""The command line names the transport to check, or the class or function that makes it."""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType
from typing import TypeGuard

from ckpt_transport.errors import PluginError
from ckpt_transport.testing.check import Factory
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Transport

CURE = "give a subclass of Transport, or a function without arguments that makes one"


def load(name: str) -> Factory:
    """Load the transport of that name, or what ``module:attribute`` names.

    Raises:
        PluginError: there is none, or it makes no transport; says what to give instead.
    """
    module, separator, attribute = name.partition(":")
    return _attribute(module, attribute) if separator else registry.load(name)


def _attribute(module: str, attribute: str) -> Factory:
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise PluginError(
            f"there is no module '{error.name}': install it, or run in the folder that it is in"
        ) from error
    made_by: object = getattr(loaded, attribute, None)
    if made_by is None:
        raise PluginError(_missing(loaded, attribute))
    if _is_transport(made_by):
        if not isinstance(getattr(made_by, "name", None), str):
            raise PluginError(f"class {attribute} of module '{module}' has no name: give it one, as name = 'acme-tcp'")
        return made_by
    if isinstance(made_by, type) or not callable(made_by):
        raise PluginError(f"{attribute} of module '{module}' makes no transport: {CURE}")
    factory: Factory = made_by
    return factory


def _missing(module: ModuleType, attribute: str) -> str:
    classes = sorted(name for name, each in vars(module).items() if _is_transport(each) and each is not Transport)
    close = difflib.get_close_matches(attribute, classes, n=1)
    suggestion = f"; did you mean {close[0]}?" if close else "."
    listed = f"Its transports: {', '.join(classes)}" if classes else f"It has no transport: {CURE}"
    return f"module '{module.__name__}' has nothing called {attribute or repr(attribute)}{suggestion} {listed}"


def _is_transport(each: object) -> TypeGuard[type[Transport]]:
    return isinstance(each, type) and issubclass(each, Transport)
