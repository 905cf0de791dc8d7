"""Open files of one process are given to others of its user, which ask for them over a UNIX socket.

Source: man 7 unix, "Abstract sockets", SCM_RIGHTS and SO_PEERCRED. An abstract name leaves no file behind, and is known
in one network namespace. All who are there can read it, such as root of another container: so whoever asks says a
secret, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Generator, Sequence
from hmac import compare_digest
from typing import Annotated

import msgspec

from ckpt_transport.decoding import UNREADABLE, prepared
from ckpt_transport.errors import CkptTransportError, PeerLostError, RegistrationError, TransferError

AT_ONCE = 32
"""Files that one answer brings: the kernel takes 253, and a process may have 1024 open."""
PATIENCE = 10.0
"""Seconds after which a process that is asked counts as lost, and one that asks for nothing more is hung up on."""
_LONGEST = 4096
"""Bytes of a question or an answer."""
_CREDENTIALS = struct.Struct("3i")
_HERE = b"+"
_TOO_MANY = "this process has too many open files; raise its limit (ulimit -n)"

Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
FileKey = tuple[Number, Number]
"""What a file is asked for by."""
OpenFile = Callable[[int, int], int]
"""Opens the file of a key for who asks; the server closes it. May raise a CkptTransportError or an OSError,
which is answered."""


def files_in_reach() -> str:
    """Equal in processes of a host that can hand each other open files; empty where nobody can."""
    try:
        return f"{os.geteuid()}/{os.readlink('/proc/self/ns/net')}"
    except OSError:
        return ""


class OpenFileServer:
    """Gives open files to processes of this user, from threads of its own.

    Args:
        open_file: opens one; called by any thread.

    Attributes:
        socket_name: where it listens, as everybody can see.
        name: where to ask, and the secret that is to be said there.
    """

    def __init__(self, open_file: OpenFile) -> None:
        self._open_file, self._secret = open_file, secrets.token_hex(16)
        self.socket_name = f"ckpt-transport-{secrets.token_hex(12)}"
        self.name = f"{self.socket_name}/{self._secret}"
        self._closed = threading.Event()
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listening.bind(f"\0{self.socket_name}")
            self._listening.listen()
            threading.Thread(target=self._listen, name="ckpt-transport-files", daemon=True).start()
        except BaseException:
            self._listening.close()
            raise

    def __enter__(self) -> OpenFileServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Answer nobody any more. Idempotent."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def leave_to_parent(self) -> None:
        """In a process that was forked: have no part of the socket, on which the parent goes on listening."""
        self._listening.close()

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                asking, _ = self._listening.accept()
            except OSError:  # it was closed, or this process has too many open files
                self._closed.wait(0.1)
                continue
            try:
                threading.Thread(target=self._serve, args=(asking,), name="ckpt-transport-files", daemon=True).start()
            except RuntimeError:  # no thread can be started: who asks is hung up on, and others may be answered later
                asking.close()

    def _serve(self, asking: socket.socket) -> None:
        with asking, contextlib.suppress(OSError):
            asking.settimeout(PATIENCE)
            is_own = _user_of(asking) in (os.geteuid(), 0)
            while question := asking.recv(_LONGEST):
                if not is_own:
                    asking.send(b"it is of another user")
                    return
                self._answer(asking, question)

    def _answer(self, asking: socket.socket, question: bytes) -> None:
        with contextlib.ExitStack() as opened:
            files: list[int] = []
            try:
                secret, keys = msgspec.msgpack.decode(question, type=prepared(tuple[str, list[FileKey]]))
                if not compare_digest(secret.encode(), self._secret.encode()):
                    raise RegistrationError("whoever asks was not told its secret")
                for address, number in keys[:AT_ONCE]:
                    files.append(self._open_file(address, number))
                    opened.callback(os.close, files[-1])
            except (CkptTransportError, OSError, *UNREADABLE) as error:
                asking.send(str(error).encode()[: _LONGEST - 1] or b"it does not say why")
                return
            socket.send_fds(asking, [_HERE], files)


def received_files(server: str, keys: Sequence[FileKey]) -> Generator[int, None, None]:
    """Ask a process for open files; they are closed soon after, :data:`AT_ONCE` together.

    Args:
        server: the name of its :class:`OpenFileServer`.
        keys: of the files, in the order in which they come.

    Raises:
        PeerLostError: the process has ended, or does not answer.
        TransferError: it has no such file any more; says why.
        RegistrationError: this process may not have them; says why.
    """
    name, _, secret = server.partition("/")
    with _asking_socket() as asking:
        try:
            asking.connect(f"\0{name}")
            if _user_of(asking) not in (os.geteuid(), 0):
                raise RegistrationError("the process that was to hand over its memory is of another user")
            for first in range(0, len(keys), AT_ONCE):
                yield from _received(asking, secret, keys[first : first + AT_ONCE])
        except TimeoutError as error:
            raise PeerLostError(
                f"the process that was to hand over its memory is silent for {PATIENCE:g} s: it hangs, or has too many "
                "open files (ulimit -n)"
            ) from error
        except PermissionError as error:
            raise RegistrationError(f"the system does not let memory be handed over here: {error.strerror}") from error
        except OSError as error:
            raise PeerLostError(f"the process that was to hand over its memory has ended ({error.strerror})") from error


def _asking_socket() -> socket.socket:
    try:
        asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        why = _TOO_MANY if error.errno == errno.EMFILE else f"no socket can be opened: {error.strerror}"
        raise RegistrationError(why) from error
    asking.settimeout(PATIENCE)
    return asking


def _received(asking: socket.socket, secret: str, keys: Sequence[FileKey]) -> Generator[int, None, None]:
    """The files of one answer."""
    asking.send(msgspec.msgpack.encode((secret, keys)))
    answer, files, flags, _ = socket.recv_fds(asking, _LONGEST, len(keys), socket.MSG_CMSG_CLOEXEC)
    with contextlib.ExitStack() as taken:
        for file in files:
            taken.callback(os.close, file)
        if flags & socket.MSG_CTRUNC:
            raise RegistrationError(_TOO_MANY)
        if not answer:
            raise PeerLostError("the process that was to hand over its memory has hung up")
        if answer != _HERE or len(files) != len(keys):
            reason = answer.decode(errors="replace")
            raise TransferError(f"the process that has the memory does not hand it over: {reason}")
        yield from files


def _user_of(connection: socket.socket) -> int:
    """Whose process is at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    return int(user)
