"""A mailbox takes another secret while it is used, and those who have only the one before are cut off."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from ckpt_transport import Config
from ckpt_transport.control import Mailbox
from ckpt_transport.control.security import Secret
from ckpt_transport.errors import ConfigError
from ckpt_transport.update.mailbox import Rotation, open_mailbox
from tests.unit.control.notes import Note, next_note, until

OLD, NEW = Secret.derive(b"correct horse battery staple"), Secret.derive(b"another horse battery staple")
ANYWHERE = "tcp://127.0.0.1:0"


def keep(secret: str, path: Path, mode: int = 0o600) -> Path:
    """Put a secret where another one may be, at once."""
    fresh = path.with_suffix(".fresh")
    fresh.write_text(secret)
    fresh.chmod(mode)
    os.replace(fresh, path)
    return path


def test_given_two_mailboxes_that_talk_when_both_take_another_secret_then_they_go_on() -> None:
    with Mailbox(ANYWHERE, [Note], secret=OLD) as mailbox, Mailbox(ANYWHERE, [Note], secret=OLD) as peer:
        where = mailbox.address
        peer.send(where, Note("with the old one"))
        assert next_note(mailbox)[1] == Note("with the old one")
        peer.watch(where)
        mailbox.use(NEW)
        peer.use(NEW)
        assert mailbox.address == where
        peer.send(where, Note("with the new one"))
        assert next_note(mailbox) == (peer.address, Note("with the new one"))
        mailbox.send(peer.address, Note("answer"))
        assert next_note(peer) == (where, Note("answer"))


def test_given_a_peer_with_the_old_secret_when_a_mailbox_has_taken_a_new_one_then_it_is_heard_no_more() -> None:
    with Mailbox(ANYWHERE, [Note], secret=OLD) as mailbox, Mailbox(ANYWHERE, [Note], secret=OLD) as late:
        late.send(mailbox.address, Note("before"))
        assert next_note(mailbox)[1] == Note("before")
        mailbox.use(NEW)
        late.send(mailbox.address, Note("from a connection of before"))
        with Mailbox(ANYWHERE, [Note], secret=OLD) as stranger, Mailbox(ANYWHERE, [Note], secret=NEW) as peer:
            stranger.send(mailbox.address, Note("from a new connection"))
            peer.send(mailbox.address, Note("with the new one"))
            assert next_note(mailbox)[1] == Note("with the new one")
            assert mailbox.receive(0.3) is None
        late.use(NEW)
        late.send(mailbox.address, Note("at last"))
        until(lambda: next_note(mailbox)[1] == Note("at last"))


def test_given_what_has_arrived_when_a_mailbox_takes_a_new_secret_then_it_can_still_be_read() -> None:
    with Mailbox(ANYWHERE, [Note], secret=OLD) as mailbox, Mailbox(ANYWHERE, [Note], secret=OLD) as peer:
        peer.send(mailbox.address, Note("early"))
        until(lambda: mailbox.pump(0.1))
        mailbox.use(NEW)
        assert next_note(mailbox)[1] == Note("early")


def test_given_a_closed_mailbox_then_it_takes_no_secret() -> None:
    mailbox = Mailbox(ANYWHERE, [Note], secret=OLD)
    mailbox.close()
    mailbox.use(NEW)
    mailbox.close()


def test_given_a_file_that_is_replaced_by_a_bad_one_then_the_secret_of_before_is_kept_and_the_file_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = keep("correct horse battery staple", tmp_path / "secret")
    config = Config(secret_file=str(path))
    with open_mailbox(ANYWHERE, [Note], config) as mailbox:
        rotation = Rotation(mailbox, config)
        for bad, mode, says in (("another horse battery staple", 0o644, "chmod 600"), ("short", 0o600, "at least 16")):
            keep(bad, path, mode)
            caplog.clear()
            rotation.tend()
            rotation.tend()
            assert caplog.text.count("goes on with the secret that it has") == 1
            assert says in caplog.text
            assert str(path) in caplog.text
            assert "another horse" not in caplog.text
            with pytest.raises(ConfigError, match=says):
                rotation.look()
            assert mailbox.secret == OLD
        path.unlink()
        with pytest.raises(ConfigError, match="No such file"):
            rotation.look()
        keep("another horse battery staple\n", path)
        with caplog.at_level(logging.INFO):
            rotation.tend()
        assert mailbox.secret == NEW
        assert "uses the new secret" in caplog.text
        assert NEW.private.decode() not in caplog.text
