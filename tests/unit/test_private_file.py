"""Secrets are read from regular files of one user, and errors name the file and not the secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckpt_transport.errors import ConfigError
from ckpt_transport.private_file import MAX_BYTES, read_private
from ckpt_transport.service.endpoints import ApiKey, check_url

SECRET = "correct horse battery staple"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777, 0o610])
def test_given_a_file_that_others_can_read_or_change_then_it_is_refused_with_the_cure(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"secret_file {path} .*mode {mode:o}.*chmod 600") as refused:
        read_private(path, "secret_file")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_given_a_file_of_its_owner_then_it_is_read_without_the_white_space_around_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.write_text(f" {SECRET}\n\n")
    path.chmod(mode)
    assert read_private(path, "secret_file") == SECRET.encode()
    (tmp_path / "link").symlink_to(path)
    assert read_private(tmp_path / "link", "secret_file") == SECRET.encode()


def test_given_no_regular_file_then_it_is_refused_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "none"):
        with pytest.raises(ConfigError, match=f"api_key_file {path}"):
            read_private(path, "api_key_file")


def test_given_a_file_that_is_too_large_for_a_secret_then_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x" * (MAX_BYTES + 1))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="more than 65536 bytes"):
        read_private(path, "secret_file")


@pytest.mark.parametrize("content", ["", "two keys", "one\nanother", "schlüssel", "a\x00b", "sk-\x1b[31m"])
def test_given_what_is_no_api_key_then_it_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=f"api_key_file {path} must hold one key") as refused:
        ApiKey(path)
    assert not content or content not in str(refused.value)


def test_given_a_url_with_a_password_then_it_is_refused_without_showing_it() -> None:
    check_url("http://127.0.0.1:8000")
    with pytest.raises(ConfigError, match=r"http://engine:8000 was given with .*api_key_file") as refused:
        check_url("http://me:hunter2@engine:8000")
    assert "hunter2" not in str(refused.value)
