"""A NUL in a path is refused by name, wherever a path comes in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_transport import AddressFile, Config, Holder
from ckpt_transport.checkpoint import Store, from_path
from ckpt_transport.checkpoint.quantizers import quantizer_for
from ckpt_transport.control.security import Secret
from ckpt_transport.errors import CheckpointError, CkptTransportError, ConfigError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.service.address_file import made_now
from ckpt_transport_fp8 import read_target

NUL = Path("/tmp/a\0b")
EMPTY = made_now("v1", "", 1, 1, [])


def register(**source: object) -> object:
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        return store.register("v1", **source)  # type: ignore[arg-type]


def index_with_nul(directory: Path) -> object:
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b\\u0000.safetensors"}}')
    return register(directory=directory)


@pytest.mark.parametrize(
    ("use", "error"),
    [
        pytest.param(lambda _: register(files=[NUL]), CheckpointError, id="files"),
        pytest.param(lambda _: register(directory=NUL), CheckpointError, id="directory"),
        pytest.param(lambda _: from_path(NUL), CheckpointError, id="path of a checkpoint"),
        pytest.param(lambda _: Holder("v1", files=[NUL], config=Config()), CheckpointError, id="holder"),
        pytest.param(lambda _: Config(secret_file=str(NUL)), ConfigError, id="secret_file"),
        pytest.param(lambda _: Config.load(trace=NUL), ConfigError, id="trace"),
        pytest.param(lambda _: Config(sinks=("ipc:///tmp/a\0b",)), ConfigError, id="addresses"),
        pytest.param(lambda _: Config.load(NUL), ConfigError, id="configuration file"),
        pytest.param(lambda _: Secret.load(NUL), ConfigError, id="secret"),
        pytest.param(lambda _: AddressFile.load(NUL, Config()), ConfigError, id="address file to read"),
        pytest.param(lambda _: EMPTY.save(NUL, Config()), ConfigError, id="address file, saved"),
        pytest.param(lambda _: quantizer_for(NUL), ConfigError, id="target of a quantizer"),
        pytest.param(lambda _: read_target(NUL), ConfigError, id="FP8 target"),
    ],
)
def test_given_a_path_with_a_nul_then_it_is_refused_by_name(
    tmp_path: Path, use: Callable[[Path], object], error: type[CkptTransportError]
) -> None:
    with pytest.raises(error, match=r"NUL character in it.*(give another path|take it out)") as caught:
        use(tmp_path)
    assert "\0" not in str(caught.value), "terminals and logs are spared"
    assert "a\\x00b" in str(caught.value)


def test_given_a_file_name_with_a_nul_in_an_index_then_it_is_refused_by_the_name_of_its_tensor(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"maps tensor 'a' to .*, which is no file name"):
        index_with_nul(tmp_path)
