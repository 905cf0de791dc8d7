"""Selects the RDMA devices that a person means, in the notation of ``NCCL_IB_HCA``.

Source: NCCL User Guide, "Environment Variables", NCCL_IB_HCA. A list separated by commas, each entry the beginning of
a device's name, with ``:port`` for one of its ports; ``=`` in front of the list has entries match whole names, ``^`` in
front of that has the list say which devices not to use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckpt_transport import ConfigError


def select(pattern: str, devices: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Return the devices that ``pattern`` leaves, in the order of ``devices``.

    Args:
        pattern: as above; an empty one leaves all.
        devices: the ports of each device that is there, by name.

    Mooncake is told devices and not ports. So an entry with a port means the device if it has that port; and a device
    is left out only when the pattern excludes all of its ports.

    Raises:
        ConfigError: a port is not a number, or the list is empty.
    """
    text = pattern.strip()
    if not text:
        return tuple(devices)
    exclude = text.startswith("^")
    exact = text.removeprefix("^").startswith("=")
    entries = [_entry(entry, pattern) for entry in text.removeprefix("^").removeprefix("=").split(",") if entry.strip()]
    if not entries:
        raise ConfigError(f"'{pattern}' names no RDMA device; write names as 'mlx5_0,mlx5_1', or beginnings as 'mlx5'")

    def named(device: str, port: int) -> bool:
        return any(
            (device == name if exact else device.startswith(name)) and wanted in (None, port)
            for name, wanted in entries
        )

    return tuple(
        device for device, ports in devices.items() if any(named(device, port) != exclude for port in ports or (1,))
    )


def _entry(entry: str, pattern: str) -> tuple[str, int | None]:
    name, colon, port = entry.strip().partition(":")
    if colon and not port.isdecimal():
        raise ConfigError(f"'{port}' in '{pattern}' is not a port; write 'mlx5_0:1', or 'mlx5_0' for every port")
    return name, int(port) if colon else None
