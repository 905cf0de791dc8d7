"""An address file says where a version can be had, for those who join later. It is JSON, not pickle.

checkpoint-engine calls such files global metas. The file says where holders listen. What they hold they say themselves,
and it must be what the file says: a file that was tampered with may send somebody to the wrong place, and brings no
wrong weights. The file has a seal, which finds damage and careless edits. Where holders and joiners share a secret, the
seal is keyed with it, and finds tampering, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ckpt_transport.config import Config
from ckpt_transport.control import addresses
from ckpt_transport.control.security import Secret
from ckpt_transport.decoding import UNREADABLE, prepared
from ckpt_transport.errors import ConfigError
from ckpt_transport.paths import path_of
from ckpt_transport.update.host import host_of, machine_of

FORMAT = "ckpt-transport metas 1"


class HolderAddress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Says where one holder listens, and on which host."""

    address: str
    host: str


class AddressFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Says where a version can be had.

    Attributes:
        format: what kind of file this is.
        version: its name.
        fingerprint: of its weights; see :attr:`Manifest.fingerprint`.
        tensors, nbytes: how many, and how much.
        holders: who serves it.
        written: seconds since the epoch.
        seal: BLAKE2b of the rest, keyed with the shared secret where there is one.
    """

    format: str = FORMAT
    version: str
    fingerprint: str
    tensors: int
    nbytes: int
    holders: tuple[HolderAddress, ...]
    written: float
    seal: str = ""

    def save(self, path: Path, config: Config) -> None:
        """Write the file, sealed, so that readers see the old one or the new one and never half of it.

        Raises:
            ConfigError: it cannot be written there.
        """
        sealed = msgspec.structs.replace(self, seal=_seal(self, config))
        path = path_of(path, ConfigError)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(fresh, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another place") from error

    @staticmethod
    def load(path: Path, config: Config) -> AddressFile:
        """The file, whose seal holds, and whose holders can be reached from here.

        Raises:
            ConfigError: it cannot be read, is no such file, was changed since it was written, or names only addresses
                that this host cannot reach.
        """
        try:
            found = msgspec.json.decode(path_of(path, ConfigError).read_bytes(), type=prepared(AddressFile))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}; give the file that serve has saved") from error
        except UNREADABLE as error:
            raise ConfigError(
                f"{path} is no file of holders: {error}; give the file that 'ckpt-transport serve --save-metas' wrote"
            ) from error
        if found.format != FORMAT:
            raise ConfigError(f"{path} is '{found.format}', and this version of ckpt-transport reads '{FORMAT}'")
        if found.seal != _seal(found, config):
            keyed = "the secret here is not that of the holder, or the file" if config.secret_file else "it"
            raise ConfigError(
                f"{path} does not have its seal: {keyed} was changed after it was written; copy it again "
                "from the holder"
            )
        own = host_of(config)
        for holder in found.holders:
            addresses.check(holder.address)
            if machine_of(holder.host) != machine_of(own) and addresses.stays_on_host(holder.address):
                raise ConfigError(
                    f"{path} names the holder {holder.address}, which only its own host ({holder.host}) can reach, and "
                    f"this is {own}; start it with an address that others reach: ckpt-transport serve --address "
                    "tcp://HOST:PORT, and a secret_file"
                )
        return found


def check_place(path: Path) -> None:
    """Look, before a version is read, whether its file can be written there.

    Raises:
        ConfigError: it cannot.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path} cannot be written: it is no file in a directory of yours; choose another place")


def made_now(
    version: str, fingerprint: str, tensors: int, nbytes: int, holders: Sequence[HolderAddress]
) -> AddressFile:
    """Make an address file that is as old as this moment."""
    return AddressFile(
        version=version,
        fingerprint=fingerprint,
        tensors=tensors,
        nbytes=nbytes,
        holders=tuple(holders),
        written=time.time(),
    )


def combine(files: Sequence[tuple[str, AddressFile]]) -> AddressFile:
    """Make one address file of several that are of one version.

    Args:
        files: each with its name, which errors mention.

    Raises:
        ConfigError: there is no file, or two are of different versions or weights; names both.
    """
    if not files:
        raise ConfigError("give at least one file of holders, as 'ckpt-transport serve --save-metas FILE' writes it")
    origin, first = files[0]
    for other_origin, other in files[1:]:
        if other.version != first.version:
            raise ConfigError(
                f"{origin} is of version '{first.version}' and {other_origin} of '{other.version}'; give files of one "
                "version"
            )
        if other.fingerprint != first.fingerprint:
            raise ConfigError(
                f"{origin} and {other_origin} are both of version '{first.version}' and of different weights; serve "
                "one checkpoint under one name"
            )
    holders = {holder.address: holder for _, each in files for holder in each.holders}
    return msgspec.structs.replace(first, holders=tuple(holders.values()), seal="")


def _seal(file: AddressFile, config: Config) -> str:
    key = Secret.load(Path(config.secret_file)).key_for("metas") if config.secret_file else b""
    blank = msgspec.json.encode(msgspec.structs.replace(file, seal=""))
    return hashlib.blake2b(blank, key=key, digest_size=16).hexdigest()
