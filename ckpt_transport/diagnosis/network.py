"""Network interfaces, the address that other hosts reach this one at, and the clock."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from ckpt_transport.config import Config
from ckpt_transport.diagnosis.finding import Finding, Severity
from ckpt_transport.errors import ConfigError
from ckpt_transport.memory.libc import libc

INTERFACES = Path("/sys/class/net")
SLOW = 10_000
"""Megabits per second; a link that is slower takes more than a second for a gigabyte."""
SIOCGIFADDR = 0x8915
TIME_ERROR = 5
"""What ``adjtimex`` returns when nobody keeps the clock right."""
TIMEX_BYTES = 256
"""More than its structure has, whose first field says that nothing is to be changed."""


def look() -> Iterator[Finding]:
    """Look at the interfaces that are up, at the setting that names one, and at the clock."""
    yield from interfaces()
    with contextlib.suppress(ConfigError):  # looking at settings has said so
        yield address(Config.load().interface, _addresses())
    yield clock()


def interfaces(folder: Path = INTERFACES) -> Iterator[Finding]:
    """Judge each interface that is a device, and is up."""
    for path in sorted(folder.glob("*")):
        if not (path / "device").exists() or _read(path / "operstate") != "up":
            continue
        topic, mtu = f"interface {path.name}", _read(path / "mtu")
        megabits = int(_read(path / "speed") or -1)
        if megabits <= 0:
            yield Finding(topic, Severity.OK, f"up, MTU {mtu}; it does not say how fast it is")
        elif megabits < SLOW:
            cure = "set interface to an address of a faster one, if there is one; --commit staged keeps the pause short"
            yield Finding(topic, Severity.NOTE, f"up, {megabits / 1000:g} Gbit/s, MTU {mtu}", cure)
        else:
            yield Finding(topic, Severity.OK, f"up, {megabits / 1000:g} Gbit/s, MTU {mtu}")


def address(bound: str, others: Mapping[str, str]) -> Finding:
    """Judge the setting ``interface``.

    Args:
        bound: what it is set to.
        others: the addresses of this machine that other hosts can reach, by the name of their interface.
    """
    named = ", ".join(f"{each} ({name})" for name, each in others.items()) or "the addresses of this host"
    try:
        family, _, _, _, place = socket.getaddrinfo(bound, None, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.bind(place)
    except OSError as error:
        said = f"interface is {bound}, which cannot be bound: {error.strerror}"
        return Finding("address", Severity.PROBLEM, said, f"set interface to one of {named}")
    ip = ipaddress.ip_address(place[0])
    if ip.is_unspecified:
        said = f"interface is {bound}, which is every interface, and nowhere that others could be sent to"
        return Finding("address", Severity.PROBLEM, said, f"set interface to one of {named}")
    if ip.is_loopback and others:
        cure = f"to reach other hosts, set interface to one of {named}, and secret_file"
        return Finding("address", Severity.NOTE, f"interface is {bound}: other hosts do not reach this process", cure)
    return Finding("address", Severity.OK, f"interface is {bound}")


def clock() -> Finding:
    """Judge whether somebody keeps the clock right."""
    state = libc().adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    if state == TIME_ERROR:
        cure = "run chrony or systemd-timesyncd on the host: histories, traces and metrics compare clocks of hosts"
        return Finding("clock", Severity.NOTE, "nothing on this host keeps it right", cure)
    return Finding("clock", Severity.OK, "is kept right" if state >= 0 else "cannot be looked at here")


def _addresses() -> dict[str, str]:
    """The IPv4 address of each interface but the loopback."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asked, SIOCGIFADDR, struct.pack("256s", os.fsencode(name)[:15]))
                ip = ipaddress.IPv4Address(answer[20:24])
                if not ip.is_loopback:
                    found[name] = str(ip)
    return found


def _read(file: Path) -> str:
    """The text of a file of the kernel; empty where it has nothing to say."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
