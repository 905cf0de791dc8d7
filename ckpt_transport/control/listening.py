"""The socket on which a mailbox listens, and who gets past its handshake."""

from __future__ import annotations

import errno

import zmq
import zmq.auth.thread

from ckpt_transport.control import addresses
from ckpt_transport.control.connections import LINGER_MS, no_socket
from ckpt_transport.control.messages import MAX_FRAME
from ckpt_transport.control.security import Secret, admit_own_user, turn_away_others
from ckpt_transport.control.touches import SocketFile
from ckpt_transport.errors import ControlError
from ckpt_transport.private_file import Stamp

HANDSHAKE_MS = 5000
"""Who connects has to say hello within that time."""


class ListeningSocket:
    """A ROUTER socket that is bound to an address. Over TCP with a secret, only who knows it is let in.

    It has a context of its own. In a context with an authenticator, libzmq has that judge every connection, those to
    others too. The authenticator ends before a closing context has sent everything, and what was sent on a connection
    without a finished handshake would be lost.

    Args:
        wanted: the address, as :func:`~ckpt_transport.control.addresses.check` returns it.
        secret: needed for TCP.

    Attributes:
        socket: to receive from, and to answer on.
        address: where it listens, with the port that it was given.
        file: of a UNIX socket, to be touched.

    Raises:
        ControlError: somebody else listens there, or nobody can.
    """

    def __init__(self, wanted: str, secret: Secret | None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator: zmq.auth.thread.ThreadAuthenticator | None = None
        self._wanted = wanted
        self._bound: Stamp | None = None
        try:
            self.socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        except zmq.ZMQError as error:
            raise no_socket(error) from error
        self.socket.maxmsgsize, self.socket.handshake_ivl = MAX_FRAME, HANDSHAKE_MS
        turn_away_others(self.socket)
        if secret is not None and wanted.startswith("tcp"):
            self._authenticator = secret.authenticator(self._context)
            secret.guard(self.socket)
        admit_own_user(self.socket)
        self.socket.ipv6 = addresses.is_ipv6(wanted)
        try:
            self.socket.bind(wanted)
            addresses.make_private(wanted)
            self.file = SocketFile(wanted)
            self._bound = addresses.file_of(wanted)
        except (zmq.ZMQError, OSError) as error:
            self.close()
            raise ControlError(f"cannot listen on {wanted}: {_why(error)}") from error
        self.address: str = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def close(self) -> None:
        """Send what is queued, then close. Somebody else may listen at the address before this returns."""
        here = addresses.file_of(self._wanted)
        if here is not None and self._bound is not None and here[:2] == self._bound[:2]:
            self._bound = here  # it was touched; while the socket is open, no other file has its number
        self.socket.close(LINGER_MS)
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(LINGER_MS)
        addresses.remove(self._wanted, self._bound)


def _why(error: zmq.ZMQError | OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "somebody else does; choose another address, or end who listens there"
        case errno.EADDRNOTAVAIL | errno.ENODEV:
            return "this host has no such address; name one of its own, as 'ip address' lists them"
        case _:
            return str(error)
