"""Address files that are stale, damaged or of somewhere else: said before anything is changed, with the cure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from ckpt_transport import AddressFile, Config, Joiner
from ckpt_transport.errors import ConfigError, JoinError, UpdateAbortedError
from tests.fleet import HolderProcess, HolderSpec, SinkProcess, SinkSpec, fleet, holders, weights
from tests.leftovers import left_behind
from tests.patience import PATIENT, with_enough_seconds

replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def nothing_left_behind() -> Iterator[None]:
    """Of all tests together, since they share a holder."""
    yield
    assert not left_behind()


@pytest.fixture
def sink() -> Iterator[SinkProcess]:
    with fleet(SinkSpec()) as (running,):
        yield running
        state = running.state()
        assert (state.version, state.tainted, state.served) == ("v1", "", "")
        assert state.holds(weights(1))


@pytest.fixture(scope="module")
def holder() -> Iterator[HolderProcess]:
    with holders(HolderSpec()) as (running,):
        yield running


def config(**settings: object) -> Config:
    return Config.load(**{**PATIENT, **settings})


def saved(metas: AddressFile, path: Path, **settings: object) -> Path:
    metas.save(path, config(**settings))
    return path


def test_given_an_address_file_then_it_says_what_it_is_and_comes_back_as_it_was(
    holder: HolderProcess, tmp_path: Path
) -> None:
    path = saved(holder.address_file, tmp_path / "metas.json")
    loaded = AddressFile.load(path, config())
    assert replace(loaded, seal="") == holder.address_file
    assert set(msgspec.json.decode(path.read_bytes())) >= {"version", "fingerprint", "holders", "written"}
    assert [path.name for path in tmp_path.iterdir()] == ["metas.json"]


def test_given_equal_weights_then_their_fingerprints_are_equal_and_those_of_others_are_not(
    holder: HolderProcess,
) -> None:
    with holders(HolderSpec(), HolderSpec(seed=3, version="v2")) as (same, other):
        assert same.address_file.fingerprint == holder.address_file.fingerprint
        assert other.address_file.fingerprint != holder.address_file.fingerprint


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda text: text.replace(b'"v2"', b'"v3"'), "does not have its seal"),
        (lambda text: text.replace(b'"tensors": 12', b'"tensors": 13'), "does not have its seal"),
        (lambda text: text[:40], "is no file of holders"),
        (lambda text: b"", "is no file of holders"),
        (lambda text: b"\x80\x04K\x2a.", "is no file of holders"),
        (lambda text: text.replace(b"metas 1", b"metas 9"), "reads 'ckpt-transport metas 1'"),
    ],
)
def test_given_an_address_file_that_is_damaged_or_edited_then_it_is_refused(
    holder: HolderProcess, tmp_path: Path, spoil: Callable[[bytes], bytes], complaint: str
) -> None:
    path = saved(holder.address_file, tmp_path / "metas.json")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ConfigError, match=complaint):
        Joiner([path], config())


def test_given_an_address_file_that_is_missing_then_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.json cannot be read"):
        Joiner([tmp_path / "nothing.json"], config())
    with pytest.raises(ConfigError, match="at least one file"):
        Joiner([], config())


def test_given_a_secret_then_only_those_who_have_it_can_seal(holder: HolderProcess, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).write_text(f"{name} {'x' * 32}")
        (tmp_path / name).chmod(0o600)
    path = saved(holder.address_file, tmp_path / "metas.json", secret_file=str(tmp_path / "theirs"))
    assert AddressFile.load(path, config(secret_file=str(tmp_path / "theirs"))).version == "v2"
    for settings in ({"secret_file": str(tmp_path / "ours")}, {}):
        with pytest.raises(ConfigError, match="does not have its seal"):
            AddressFile.load(path, config(**settings))


def test_given_a_holder_that_only_its_own_host_reaches_then_it_is_refused_elsewhere(
    holder: HolderProcess, tmp_path: Path
) -> None:
    path = saved(holder.address_file, tmp_path / "metas.json")
    with pytest.raises(ConfigError, match=r"only its own host .* can reach.*--address tcp://HOST:PORT"):
        Joiner([path], config(host="elsewhere"))


def test_given_files_of_two_versions_or_of_other_weights_then_they_are_refused(
    holder: HolderProcess, tmp_path: Path
) -> None:
    first = saved(holder.address_file, tmp_path / "first.json")
    later = saved(replace(holder.address_file, version="v3"), tmp_path / "later.json")
    other = saved(replace(holder.address_file, fingerprint="f" * 32), tmp_path / "other.json")
    with pytest.raises(ConfigError, match=r"first.json is of version 'v2' and .*later.json of 'v3'"):
        Joiner([first, later], config())
    with pytest.raises(ConfigError, match=r"first.json and .*other.json are both of version 'v2'"):
        Joiner([first, other], config())


def test_given_a_holder_that_is_not_there_then_it_is_named_in_time(
    sink: SinkProcess, holder: HolderProcess, tmp_path: Path
) -> None:
    gone = replace(holder.address_file.holders[0], address=f"ipc://{tmp_path}/gone")
    path = saved(replace(holder.address_file, holders=(gone,)), tmp_path / "metas.json")

    def is_named(seconds: float) -> bool:
        """Unless the sink does not join in time either."""
        with pytest.raises(UpdateAbortedError) as caught:
            Joiner([path], config(join_timeout=seconds)).update("v2", [sink.address])
        assert isinstance(caught.value.__cause__, JoinError)
        said = str(caught.value)
        return f"{gone.address}: it does not answer" in said and "start one with" in said

    with_enough_seconds(is_named)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": "v3"}, "it holds 'v2' now, and 'v3' is asked for; use the file that it wrote last"),
        ({"fingerprint": "f" * 32}, "it holds other weights than .*stale or was changed"),
    ],
)
def test_given_an_address_file_that_is_stale_then_it_is_found_out(
    sink: SinkProcess, holder: HolderProcess, tmp_path: Path, changes: dict[str, str], complaint: str
) -> None:
    """Given a file of before a holder was restarted with something else, then nothing is brought."""
    path = saved(replace(holder.address_file, **changes), tmp_path / "metas.json")
    joiner = Joiner([path], config())
    with pytest.raises(UpdateAbortedError, match=complaint):
        joiner.update(joiner.version, [sink.address])


def test_given_an_engine_that_does_not_fit_then_it_is_told_so(holder: HolderProcess, tmp_path: Path) -> None:
    path = saved(holder.address_file, tmp_path / "metas.json")
    with fleet(SinkSpec(model={"layers": 3})) as (small,):
        with pytest.raises(UpdateAbortedError, match=r"tensors that sink 0 does not"):
            Joiner([path], config()).update("v2", [small.address])
        assert small.state().served == ""


def test_given_two_holders_of_which_one_is_gone_then_the_other_is_enough_and_the_lost_one_is_named(
    holder: HolderProcess, tmp_path: Path
) -> None:
    gone = replace(holder.address_file.holders[0], address=f"ipc://{tmp_path}/gone")
    paths = [
        saved(holder.address_file, tmp_path / "here.json"),
        saved(replace(holder.address_file, holders=(gone,)), tmp_path / "gone.json"),
    ]
    with fleet(SinkSpec()) as (joining,):

        def is_left_out(seconds: float) -> bool:
            try:
                report = Joiner(paths, config(join_timeout=seconds)).update("v2", [joining.address])
            except UpdateAbortedError:
                return False
            assert list(report.left) == [gone.address]
            return True

        with_enough_seconds(is_left_out)
        assert joining.state().holds(weights(2))


def test_given_another_version_than_that_of_the_file_then_it_is_refused(holder: HolderProcess, tmp_path: Path) -> None:
    joiner = Joiner([saved(holder.address_file, tmp_path / "metas.json")], config())
    with pytest.raises(ConfigError, match=r"'v9' is asked for, and .*metas.json is of 'v2'"):
        joiner.update("v9", ["ipc:///tmp/x"])
    with pytest.raises(ConfigError, match="each once"):
        joiner.update("v2", [])
