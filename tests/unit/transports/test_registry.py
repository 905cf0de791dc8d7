"""Real distributions on disk, found by real importlib.metadata. Nothing is replaced."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from ckpt_transport.errors import (
    TransportConflictError,
    TransportNotFoundError,
)
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Transport
from ckpt_transport.transports.registry import GROUP, Registry
from tests.unit.transports.distributions import Install, plugin, write_distribution


def in_a_fresh_process(site: Path, cache: Path, program: str) -> dict[str, list[str]]:
    """Run ``program`` where ``site`` is on the path and nothing was imported yet; it prints a JSON object."""
    paths = [str(site), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        cwd=Path(registry.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, list[str]] = json.loads(done.stdout)
    return answer


# -- only what was asked for ----------------------------------------------------------------------------------------


def test_given_a_transport_that_was_asked_for_then_only_that_is_imported_and_no_cache_is_written(
    tmp_path: Path,
) -> None:
    # Given three plugins, one of which cannot even be imported
    site, cache = tmp_path / "site", tmp_path / "cache"
    for name in ("first", "second"):
        write_distribution(site, f"dist-{name}", [(name, f"mod_{name}:Plugin")], {f"mod_{name}": plugin(name)})
    write_distribution(site, "dist-third", [("third", "mod_third:Plugin")], {"mod_third": "raise SystemExit('no')"})

    # When a fresh process lists the names, and then loads one
    seen = in_a_fresh_process(
        site,
        cache,
        """
        import json, sys
        from ckpt_transport.transports import registry

        def imported():
            return sorted(name for name in sys.modules if name.startswith("mod_") or name.startswith("ckpt_transport_"))

        names = registry.names()
        after_names = imported()
        registry.load("second")
        print(json.dumps({"names": names, "after_names": after_names, "after_load": imported()}))
        """,
    )

    # Then listing imported nothing, loading imported that one, and stevedore left no file in the user's cache
    assert {"first", "second", "third"} <= set(seen["names"])
    assert seen["names"] == sorted(seen["names"])
    assert seen["after_names"] == []
    assert seen["after_load"] == ["mod_second"]
    assert not cache.exists()


def test_given_a_cache_that_another_process_left_half_written_then_it_does_no_harm(tmp_path: Path) -> None:
    # Given stevedore's cache as two processes that wrote it at once have left it: JSON, but not entry points
    site, cache = tmp_path / "site", tmp_path / "cache"
    write_distribution(site, "dist-calm", [("calm", "mod_calm:Plugin")], {"mod_calm": plugin("calm")})
    program = """
        import json, stevedore._cache
        from ckpt_transport.transports import registry
        {spoil}
        print(json.dumps({{"names": registry.names(), "loaded": [registry.load("calm").name]}}))
        """
    spoil = f"""
        import os, sys
        digest, _ = stevedore._cache._hash_settings_for_path(tuple(sys.path))
        os.makedirs({str(cache / "python-entrypoints")!r})
        with open(os.path.join({str(cache / "python-entrypoints")!r}, digest), "w") as file:
            json.dump({{"groups": {{{GROUP!r}: [["torn"]]}}}}, file)
        """

    # When a fresh process looks for a transport
    seen = in_a_fresh_process(site, cache, program.format(spoil=spoil.strip()))

    # Then it finds what is installed
    assert "calm" in seen["names"]
    assert seen["loaded"] == ["calm"]


def test_given_a_plugin_installed_while_the_process_runs_then_it_is_found(install: Install) -> None:
    # Given a registry that was used before a plugin came
    transports = Registry()
    assert "latecomer" not in transports.names()

    # When the plugin is installed
    install("late-dist", [("latecomer", "mod_latecomer:Plugin")], {"mod_latecomer": plugin("latecomer")})

    # Then it is there
    assert "latecomer" in transports.names()
    assert issubclass(transports.load("latecomer"), Transport)


def test_given_nothing_that_was_installed_since_then_packages_are_searched_once_and_a_plugin_is_loaded_once(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a registry that was asked before
    install("calm-dist", [("calm", "mod_calm:Plugin")], {"mod_calm": plugin("calm")})
    transports = Registry()
    first = transports.names(), transports.load("calm")

    # When it is asked again, while each search of the packages is noted
    searches: list[dict[str, str]] = []
    search = importlib.metadata.entry_points

    def noted(**chosen: str) -> Any:
        searches.append(chosen)
        return search(**chosen)

    monkeypatch.setattr(importlib.metadata, "entry_points", noted)
    again = transports.names(), transports.load("calm")

    # Then it answers the same without a search
    assert again == first
    assert searches == []


def test_given_the_projects_own_transports_then_they_come_through_the_same_door() -> None:
    assert {"gloo", "mooncake", "nixl", "shm", "ucx"} <= set(registry.names())
    assert registry.load("gloo").name == "gloo"


# -- names ----------------------------------------------------------------------------------------------------------


def test_given_a_name_nobody_registers_then_the_answer_has_the_names_there_are(install: Install) -> None:
    # Given a transport called 'carrier'
    install("pigeon-dist", [("carrier", "mod_carrier:Plugin"), ("owl", "mod_owl:Plugin")])

    # When somebody misspells it
    with pytest.raises(TransportNotFoundError) as caught:
        Registry().load("carier")

    # Then the answer lists what there is and guesses what was meant
    assert "no transport is called 'carier'; did you mean 'carrier'?" in str(caught.value)
    assert "carrier" in str(caught.value).partition("Installed:")[2]
    assert "owl" in str(caught.value).partition("Installed:")[2]


def test_given_two_distributions_with_one_name_then_both_are_named_and_neither_is_imported(install: Install) -> None:
    # Given two distributions that register 'twin', with other entry points between them
    trap = "raise SystemExit('must not be imported')"
    install("alpha-dist", [("twin", "mod_alpha:One"), ("between", "mod_alpha:Two")], {"mod_alpha": trap})
    install("beta-dist", [("betwixt", "mod_beta:Plugin")], {"mod_beta": trap})
    install("gamma-dist", [("amid", "mod_gamma:Three"), ("twin", "mod_gamma:Four")], {"mod_gamma": trap})

    # When somebody asks for it, in whatever way
    for ask in (Registry().load, Registry().available):
        with pytest.raises(TransportConflictError) as caught:
            ask("twin")

        # Then both owners and both targets are named
        for part in ("alpha-dist 1.0", "mod_alpha:One", "gamma-dist 1.0", "mod_gamma:Four"):
            assert part in str(caught.value)


def test_given_one_distribution_that_registers_a_name_twice_then_it_is_a_conflict_too(install: Install) -> None:
    # Given a distribution with the same name on two adjacent lines
    install("echo-dist", [("echo", "mod_echo:One"), ("echo", "mod_echo:Two")])

    # When and then
    with pytest.raises(TransportConflictError, match=r"mod_echo:One and .*mod_echo:Two"):
        Registry().load("echo")


# -- probing --------------------------------------------------------------------------------------------------------


def test_given_a_probe_then_available_gives_what_it_says(install: Install) -> None:
    install("fine-dist", [("fine", "mod_fine:Plugin")], {"mod_fine": plugin("fine")})

    answer = Registry().available("fine")

    assert answer.ok
    assert answer.reason == "made for a test"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("return 1 / 0", "its probe failed: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "its probe failed: SystemExit: 3"),
        ("return True", "its probe answers True, which is no Availability"),
    ],
)
def test_given_a_probe_with_a_bug_then_it_is_an_answer_and_no_crash(install: Install, answer: str, reason: str) -> None:
    source = plugin("rash").replace('return Availability(True, "made for a test")', answer)
    install("rash-dist", [("rash", "mod_rash:Plugin")], {"mod_rash": source})

    # When
    found = Registry().available("rash")

    # Then
    assert not found.ok
    assert found.reason == reason
    assert found.hint == "report this to the authors of rash-dist"


def test_given_an_unknown_transport_when_it_is_asked_for_then_that_is_an_error() -> None:
    with pytest.raises(TransportNotFoundError):
        Registry().available("a_name_nobody_registers")


COUNTING = "probed = 0\n" + plugin("counting").replace(
    "        return", "        global probed\n        probed += 1\n        return"
).replace('True, "made for a test"', 'OK, f"probed {probed} times"')


def test_given_a_transport_that_can_run_then_it_is_probed_again_when_something_has_failed_or_was_installed(
    install: Install,
) -> None:
    install("dist-counting", [("counting", "mod_counting:Plugin")], {"mod_counting": COUNTING.replace("OK", "True")})
    found = Registry()
    assert [found.seen("counting").reason for _ in range(3)] == ["probed 1 times"] * 3
    found.look_again()
    assert found.seen("counting").reason == "probed 2 times"
    install("dist-other", [("other", "mod_other:Plugin")], {"mod_other": plugin("other")})
    assert found.available("other").ok
    assert found.seen("counting").reason == "probed 3 times"
    assert found.available("counting").reason == "probed 4 times"


def test_given_a_transport_that_cannot_run_then_it_is_probed_again_after_a_while(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("dist-counting", [("counting", "mod_counting:Plugin")], {"mod_counting": COUNTING.replace("OK", "False")})
    found = Registry()
    assert [found.seen("counting").reason for _ in range(3)] == ["probed 1 times"] * 3
    monkeypatch.setattr(registry, "AGAIN_SECONDS", 0.0)
    assert found.seen("counting").reason == "probed 2 times"
