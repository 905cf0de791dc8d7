"""Encryption and authentication of TCP mailboxes: CURVE, with one key pair that is derived from a shared secret.

Who knows the secret can connect and be connected to; nobody else gets past the handshake. Protocol: CurveZMQ
(https://rfc.zeromq.org/spec/26/), with the client's key checked by a ZAP handler (https://rfc.zeromq.org/spec/27/).
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth
import zmq.auth.thread
from zmq.utils import z85

from ckpt_transport.errors import ConfigError

MIN_SECRET_BYTES = 16


@dataclass(frozen=True, slots=True)
class Secret:
    """A CURVE key pair, Z85 text, the same for every participant."""

    public: bytes
    private: bytes = field(repr=False)

    @classmethod
    def derive(cls, secret: bytes) -> Secret:
        """The key pair of a shared secret of at least 16 bytes."""
        if len(secret) < MIN_SECRET_BYTES:
            raise ConfigError(f"the shared secret has {len(secret)} bytes; at least {MIN_SECRET_BYTES} are needed")
        private = z85.encode(hashlib.sha256(b"ckpt-transport curve key\0" + secret).digest())
        return cls(zmq.curve_public(private), private)

    @classmethod
    def load(cls, path: Path) -> Secret:
        """Read the secret from a file that only its owner can read.

        Raises:
            ConfigError: the file is missing, readable by others, or too short.
        """
        try:
            status = path.stat()
            content = path.read_bytes().strip()
        except OSError as error:
            raise ConfigError(f"secret_file {path}: {error.strerror}") from error
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"secret_file {path} can be read by others; chmod 600 it")
        return cls.derive(content)

    def key_for(self, purpose: str) -> bytes:
        """32 bytes that only those with the secret can have, other ones for each purpose."""
        return hashlib.sha256(b"ckpt-transport " + purpose.encode() + b" key\0" + self.private).digest()

    def guard(self, server: zmq.Socket[bytes]) -> None:
        """Make ``server`` accept only holders of the secret. Call before bind."""
        server.curve_server = True
        server.curve_secretkey = self.private
        server.zap_domain = b"ckpt-transport"

    def present(self, client: zmq.Socket[bytes]) -> None:
        """Make ``client`` show that it holds the secret. Call before connect."""
        client.curve_serverkey = self.public
        client.curve_publickey = self.public
        client.curve_secretkey = self.private

    def authenticator(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.auth.thread.ThreadAuthenticator:
        """A running ZAP handler for ``context``; stop it when the context ends."""
        handler = zmq.auth.thread.ThreadAuthenticator(context)
        handler.start()
        handler.configure_curve_callback("ckpt-transport", _OnlyKey(self.public))
        return handler


class _OnlyKey:
    """The credentials provider that pyzmq's authenticator asks."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._public
