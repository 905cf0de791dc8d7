"""Plugins that cannot be loaded: what they lack, or what is wrong with them, comes with its cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_transport.errors import (
    PluginError,
    TransportUnavailableError,
)
from ckpt_transport.transports.interface import API_VERSION
from ckpt_transport.transports.registry import Registry
from tests.unit.transports.distributions import Install, plugin

# -- a library is missing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transport", "target", "source", "extras", "hint"),
    [
        pytest.param(
            "fast_link",
            "mod_fast_link:Plugin",
            "import a_library_nobody_has",
            ["other", "fast-link"],
            "pip install 'acme-dist[fast-link]'",
            id="the distribution has an extra of the transport's name",
        ),
        pytest.param(
            "wire",
            "mod_wire:Plugin [wirelib]",
            "import a_library_nobody_has",
            ["wirelib", "wire"],
            "pip install 'acme-dist[wirelib]'",
            id="the entry point names its extra",
        ),
        pytest.param(
            "bare",
            "mod_bare:Plugin",
            "import a_library_nobody_has.part",
            ["other"],
            "pip install a_library_nobody_has (or whichever package provides the module 'a_library_nobody_has')",
            id="no extra",
        ),
        pytest.param(
            "hollow",
            "mod_hollow_is_not_there:Plugin",
            None,
            ["hollow"],
            "pip install --force-reinstall acme-dist",
            id="the plugin itself",
        ),
        pytest.param(
            "native",
            "mod_native:Plugin",
            "import ctypes; ctypes.CDLL('libnobody_has_this.so.1')",
            [],
            "",
            id="a shared object",
        ),
    ],
)
def test_given_a_library_that_is_missing_then_it_comes_with_its_cure(
    install: Install, transport: str, target: str, source: str | None, extras: list[str], hint: str
) -> None:
    # Given a plugin that imports what is not installed
    install("acme-dist", [(transport, target)], {f"mod_{transport}": source} if source else {}, extras)
    transports = Registry()

    # When it is asked for
    with pytest.raises(TransportUnavailableError) as caught:
        transports.load(transport)

    # Then the error says what is missing and what to do, and the cause is chained
    assert caught.value.name == transport
    assert caught.value.hint == hint
    assert isinstance(caught.value.__cause__, ImportError | OSError)
    assert str(caught.value.__cause__) in caught.value.reason

    # And asking whether it is available answers the same, and does not raise
    answer = transports.available(transport)
    assert (answer.ok, answer.reason, answer.hint) == (False, caught.value.reason, hint)


def test_given_an_import_that_failed_then_it_is_kept_and_shown_to_whoever_asks_next(
    install: Install, tmp_path: Path
) -> None:
    # Given a plugin that notes each time it is imported, and fails
    diary = tmp_path / "diary"
    source = f"with open({str(diary)!r}, 'a') as diary: diary.write('imported ')\nimport a_library_nobody_has"
    install("moody-dist", [("moody", "mod_moody:Plugin")], {"mod_moody": source})
    transports = Registry()

    # When it is asked for three times
    with pytest.raises(TransportUnavailableError) as first:
        transports.load("moody")
    with pytest.raises(TransportUnavailableError) as second:
        transports.load("moody")
    answer = transports.available("moody")

    # Then it was imported once, and everybody gets the same reason
    assert diary.read_text() == "imported "
    assert first.value.__cause__ is second.value.__cause__
    assert answer.reason == second.value.reason == first.value.reason


# -- a plugin is wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "complaint"),
    [
        pytest.param(
            "class Plugin: pass",
            "Plugin",
            "not a subclass of ckpt_transport's Transport",
            id="another class",
        ),
        pytest.param("Plugin = 7", "Plugin", "names 7, which is not", id="no class"),
        pytest.param(plugin("odd") + "\nmade = Plugin()", "made", "not a subclass", id="an instance"),
        pytest.param(plugin("even"), "Plugin", "calls itself 'even'", id="another name"),
        pytest.param(
            "from ckpt_transport.transports.interface import Transport\nclass Plugin(Transport): pass",
            "Plugin",
            "calls itself None",
            id="no name",
        ),
        pytest.param(
            "from ckpt_transport.transports.interface import Transport\nclass Plugin(Transport): name = 'odd'",
            "Plugin",
            "does not define open, probe",
            id="abstract",
        ),
        pytest.param(plugin("odd") + "\n    traits = None", "Plugin", "traits are None", id="no traits"),
        pytest.param("raise SystemExit(3)", "Plugin", "cannot be loaded: SystemExit: 3", id="a program"),
        pytest.param(
            plugin("odd") + f"\n    api_version = {API_VERSION + 41}",
            "Plugin",
            f"for version {API_VERSION + 41} of the transport API, and this ckpt_transport has version {API_VERSION}",
            id="another API",
        ),
        pytest.param("", "Plugin", "cannot be loaded: AttributeError", id="nothing of that name"),
        pytest.param("raise RuntimeError('bad day')", "Plugin", "RuntimeError: bad day", id="raises"),
        pytest.param("assert 1 > 2, 'arithmetic'", "Plugin", "AssertionError: arithmetic", id="asserts"),
    ],
)
def test_given_a_plugin_that_is_not_a_transport_then_it_is_refused(
    install: Install, source: str, target: str, complaint: str
) -> None:
    # Given an entry point 'odd' that names something that will not do
    install("odd-dist", [("odd", f"mod_odd:{target}")], {"mod_odd": source})
    transports = Registry()

    # When it is loaded, then the error says what is wrong with it
    with pytest.raises(PluginError) as caught:
        transports.load("odd")
    assert "'odd'" in str(caught.value)
    assert complaint in str(caught.value)

    # And a list of what is available is not spoiled by it
    answer = transports.available("odd")
    assert not answer.ok
    assert complaint in answer.reason
