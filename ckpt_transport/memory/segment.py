"""A segment is named shared memory that never outlives its owner for long.

A segment is a file in ``/dev/shm``. Its owner holds an exclusive ``flock`` on it, which the kernel drops when the
process ends, however it ends. So a file with our name and no lock is a leftover, in any container that shares the
mount, and :func:`sweep_leftovers` removes it. The file gets its name only after it is locked (``O_TMPFILE`` and
``linkat``), so no sweep can meet it half made.

Only segments are mapped, and no file that somebody else keeps: whoever reads a mapped file dies of SIGBUS once it was
made shorter. The mode of a segment lets nobody open it for writing, not even its user
(docs/adr/0017-only-own-segments-are-mapped.md).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import mmap
import os
import secrets
import stat
import warnings
import weakref
from pathlib import Path

import msgspec
import torch

from ckpt_transport.errors import SharedMemoryError

SHM = Path("/dev/shm")
PREFIX = "ckpt-transport-"
_MODE = 0o400


class SegmentName(msgspec.Struct, frozen=True):
    """The name of a segment, with what shows that a file of this name is another one.

    Attributes:
        name: its file name in ``/dev/shm``.
        inode: the file's inode; a file put in its place later has another.
        nbytes: its size.
    """

    name: str
    inode: int
    nbytes: int


class Segment:
    """Shared memory of one name, mapped into this process.

    Use :meth:`create` or :meth:`attach`. Views made by :meth:`tensor` stay readable after
    :meth:`close`; the memory goes back when the last view in the last process is gone.
    """

    def __init__(self, path: Path, file: io.FileIO, mapping: mmap.mmap, *, owned: bool) -> None:
        self.path = path
        self.writable = owned
        inode = os.fstat(file.fileno()).st_ino
        self.name = SegmentName(path.name, inode, len(mapping))
        self._file = file
        self._mapping: mmap.mmap | None = mapping
        self._kept = file, path if owned else None, inode, os.getpid()
        self._finalizer = weakref.finalize(self, _release, *self._kept)

    @classmethod
    def create(cls, nbytes: int) -> Segment:
        """Make a segment of ``nbytes``, owned by this process and unlinked when it closes or exits.

        Pages are reserved by :meth:`reserve`, so that the threads that fill the segment can do it in parallel.

        Raises:
            SharedMemoryError: ``/dev/shm`` is missing or has less than ``nbytes`` free, or a limit is in the way.
        """
        if not SHM.is_dir():
            raise SharedMemoryError("this system has no /dev/shm; use the 'gloo' transport here")
        free = free_shared_memory()
        if nbytes > free:
            raise _full(nbytes, free)
        path = SHM / f"{PREFIX}{os.getuid()}-{os.getpid()}-{secrets.token_hex(4)}"
        file = io.FileIO(os.open(SHM, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, _MODE), "r+")
        fd = file.fileno()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, max(nbytes, 1))
            # With a directory descriptor CPython calls linkat, which follows the symlink; link(2) does not (EXDEV).
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
            return cls(path, file, mmap.mmap(fd, max(nbytes, 1)), owned=True)
        except BaseException as error:
            _release(file, path, os.fstat(fd).st_ino, os.getpid())
            if isinstance(error, OSError):
                raise SharedMemoryError(
                    f"this process cannot have {nbytes:,} bytes of shared memory: {error.strerror}; look at "
                    "its limits, as 'ulimit -v' says them"
                ) from error
            raise

    @classmethod
    def attach(cls, name: SegmentName) -> Segment:
        """Map another process's segment, read-only.

        Raises:
            SharedMemoryError: it is no segment, it is gone, or the file of that name is not the one that was described.
        """
        path = SHM / name.name
        if path.parent != SHM or not path.name.startswith(PREFIX):
            raise SharedMemoryError(f"{name.name!r} is not called as a segment is, and nothing else is mapped")
        try:
            file = io.FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
        except (OSError, ValueError) as error:
            raise SharedMemoryError(f"{path}: {getattr(error, 'strerror', error)}") from error
        try:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or (status.st_ino, status.st_size) != (name.inode, name.nbytes):
                raise SharedMemoryError(f"{path} was replaced or cut short; register the version again")
            return cls(path, file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), owned=False)
        except BaseException:
            file.close()
            raise

    def tensor(self) -> torch.Tensor:
        """The whole segment: shape ``(nbytes,)``, dtype uint8. Do not write to a segment that was attached."""
        assert self._mapping is not None, "segment is closed"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return torch.frombuffer(self._mapping, dtype=torch.uint8)

    def reserve(self, offset: int, nbytes: int) -> None:
        """Make sure that the pages of a range exist, so that writing to them cannot end in SIGBUS.

        Raises:
            SharedMemoryError: ``/dev/shm`` is full.
        """
        assert not self.closed, "segment is closed"
        if nbytes == 0:
            return
        try:
            os.posix_fallocate(self._file.fileno(), offset, nbytes)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise _full(nbytes, free_shared_memory()) from error
            raise

    def still_named(self) -> bool:
        """Whether the file of this name is still this segment (its owner has not let go of it)."""
        try:
            return os.stat(self.path).st_ino == self.name.inode
        except FileNotFoundError:
            return False

    def was_cut(self) -> bool:
        """Whether somebody has made it shorter, so that reading its tensor ends in SIGBUS."""
        return os.fstat(self._file.fileno()).st_size < self.name.nbytes

    def close(self) -> None:
        """Unlink it if we own it, and let go of it. Idempotent; so is what an interrupt leaves."""
        self._mapping = None
        _release(*self._kept)
        self._finalizer.detach()

    @property
    def closed(self) -> bool:
        return self._mapping is None


def _release(file: io.FileIO, owned_path: Path | None, inode: int, owner: int) -> None:
    """Runs at ``close``, when the segment is collected, or when the interpreter exits. Idempotent."""
    if file.closed:
        return
    if owned_path is not None and os.getpid() == owner:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(owned_path).st_ino == inode:
                os.unlink(owned_path)
    file.close()


def free_shared_memory() -> int:
    """Bytes that ``/dev/shm`` still has room for; 0 where there is none."""
    try:
        status = os.statvfs(SHM)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def sweep_leftovers() -> list[Path]:
    """Remove this user's segments whose owner is dead, and say which. Called when a store or a transport starts."""
    return [path for path in SHM.glob(f"{PREFIX}{os.getuid()}-*") if _remove_if_orphan(path)]


def _remove_if_orphan(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _full(wanted: int, free: int) -> SharedMemoryError:
    return SharedMemoryError(
        f"/dev/shm has {free:,} bytes free and {wanted:,} are needed; start the container with --ipc=host or "
        "--shm-size (in Kubernetes an emptyDir of medium Memory at /dev/shm), mount -o remount,size=... a larger one, "
        "or unregister an older version"
    )
