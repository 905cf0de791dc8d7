"""Over TCP only who knows the shared secret gets through to a mailbox, over UNIX sockets only the same user.

TCP mailboxes are encrypted and authenticated by CURVE, with one key pair that is derived from the secret. Who knows it
can connect and be connected to; nobody else gets past the handshake. Protocol: CurveZMQ
(https://rfc.zeromq.org/spec/26/), with the client's key checked by a ZAP handler (https://rfc.zeromq.org/spec/27/).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth
import zmq.auth.thread
from zmq.utils import z85

from ckpt_transport.control import addresses
from ckpt_transport.errors import ConfigError
from ckpt_transport.private_file import Stamp, read_private, stamp_of

MIN_SECRET_BYTES = 16
DOMAIN = b"ckpt-transport"
"""Of ZAP: what our sockets are called there."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret is a CURVE key pair in Z85 text, the same for every participant."""

    public: bytes
    private: bytes = field(repr=False)

    @classmethod
    def derive(cls, secret: bytes, named: str = "the shared secret") -> Secret:
        """The key pair of a shared secret of at least 16 bytes; ``named`` says in errors which one it is."""
        if len(secret) < MIN_SECRET_BYTES:
            raise ConfigError(f"{named} has {len(secret)} bytes; at least {MIN_SECRET_BYTES} are needed")
        private = z85.encode(hashlib.sha256(b"ckpt-transport curve key\0" + secret).digest())
        return cls(zmq.curve_public(private), private)

    @classmethod
    def load(cls, path: Path) -> Secret:
        """Read the secret from a file that only its owner can read.

        Raises:
            ConfigError: the file is missing, readable by others, or too short.
        """
        return cls.derive(read_private(path, "secret_file"), f"the secret in secret_file {path}")

    def key_for(self, purpose: str) -> bytes:
        """32 bytes that only those with the secret can have, other ones for each purpose."""
        return hashlib.sha256(b"ckpt-transport " + purpose.encode() + b" key\0" + self.private).digest()

    def guard(self, server: zmq.Socket[bytes]) -> None:
        """Make ``server`` accept only holders of the secret. Call before bind."""
        server.curve_server = True
        server.curve_secretkey = self.private

    def present(self, client: zmq.Socket[bytes]) -> None:
        """Make ``client`` show that it holds the secret. Call before connect."""
        client.curve_serverkey = self.public
        client.curve_publickey = self.public
        client.curve_secretkey = self.private

    def authenticator(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.auth.thread.ThreadAuthenticator:
        """A running ZAP handler for ``context``; stop it when the context ends."""
        handler = zmq.auth.thread.ThreadAuthenticator(context)
        handler.start()
        handler.configure_curve_callback(DOMAIN.decode(), _OnlyKey(self.public))
        return handler


def turn_away_others(socket: zmq.Socket[bytes]) -> None:
    """Make ``socket`` end connections to what is no mailbox, such as a web server. Call before bind and connect.

    Without a domain, libzmq takes what it does not understand for ZMTP 1.0, which had no greeting, and ends the whole
    process if that arrives while the socket is being closed (an assertion of 4.3.5).
    """
    socket.zap_domain = DOMAIN


class SecretFile:
    """A file holds the secret, and may be given another one while it is used.

    Args:
        path: of the file.

    Attributes:
        secret: the one that was taken last.

    Raises:
        ConfigError: as :meth:`Secret.load`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: Stamp | None = stamp_of(path)
        self.secret = Secret.load(path)

    def take(self) -> Secret:
        """The secret that the file holds now; it is read when it was changed.

        Raises:
            ConfigError: it holds none; :attr:`secret` stays what it was.
        """
        seen = stamp_of(self._path)
        if seen != self._seen:
            self.secret, self._seen = Secret.load(self._path), seen
        return self.secret


def check_secured(address: str, secret: Secret | None, insecure: bool) -> None:
    """Look at an address that is about to be bound or connected to.

    Raises:
        ConfigError: others could listen there, or pose as a participant.
    """
    if secret is not None or not address.startswith("tcp"):
        return
    if not addresses.stays_on_host(address):
        raise ConfigError(
            f"{address} can be reached from other hosts; give all participants the same secret_file, or use ipc:// "
            "addresses of one host"
        )
    if not insecure:
        raise ConfigError(
            f"{address} can be reached by every user of this host; give all participants the same secret_file, "
            "sinks at ipc:// addresses too, or have all of them listen at ipc:// addresses, or set insecure = true in "
            "the settings of all of them where you trust every user of this host"
        )


def admit_own_user(server: zmq.Socket[bytes]) -> None:
    """Make ``server`` accept, over UNIX sockets, processes of this user and of root only. Call before bind."""
    for uid in {os.geteuid(), 0}:
        with contextlib.suppress(zmq.ZMQError):  # a libzmq without the filter; the socket's file has mode 600
            server.setsockopt(zmq.IPC_FILTER_UID, uid)


class _OnlyKey:
    """The credentials provider that pyzmq's authenticator asks."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._public
