"""Whoever talks to many has couriers: one for each sixteen, which hands on to the others what is said to them.

Where there are more than sixteen couriers, one of each sixteen of these is talked to, and hands on to the others what
is for those behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ckpt_transport.control.messages import Dispatch

FAN_OUT = 16
"""So many are talked to by one courier, itself included. Who talks to no more of them needs none."""
LARGE_BYTES = 64 << 10
"""What is longer goes to each by itself: couriers are for what costs more to say than to copy."""

Encoded = Sequence[bytes]
"""A message as frames."""


def in_groups(hosts: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    """Those for one courier each, of one host each, about as many in each group; none where there are few in all."""
    hosts = list(hosts)
    if sum(map(len, hosts)) > FAN_OUT:
        for addresses in hosts:
            yield from _alike(addresses)


def _alike(addresses: Sequence[str]) -> Iterator[Sequence[str]]:
    """As few groups as there can be, about as many in each."""
    groups = -(-len(addresses) // FAN_OUT)
    for number in range(groups):
        yield addresses[number * len(addresses) // groups : (number + 1) * len(addresses) // groups]


class Level:
    """Knows by whom each is reached. A courier is used when it was seen to reach those it is for."""

    def __init__(self) -> None:
        self._planned: dict[str, str] = {}
        self.seen: dict[str, str] = {}
        self.used: dict[str, str] = {}

    def plan(self, groups: Iterable[Sequence[str]]) -> Mapping[str, list[str]]:
        """Have the first of each group be the courier of all of it. Those that were seen to be reached are so from now
        on.

        Returns: whom each courier has yet to be seen to reach.
        """
        groups = list(groups)
        self._planned = {address: group[0] for group in groups for address in group}
        self.seen = dict(self.seen.items() & self._planned.items())
        self.used = dict(self.seen)
        return {group[0]: [address for address in group if address not in self.seen] for group in groups}

    def brought(self, courier: str, addresses: Iterable[str]) -> list[str]:
        """Those of the addresses for which that courier is the one."""
        planned = self._planned
        return [address for address in addresses if planned.get(address) == courier]

    def saw(self, courier: str, addresses: Iterable[str]) -> None:
        """The courier has brought something from there, for which it is the one."""
        self.seen.update(dict.fromkeys(addresses, courier))

    def forget(self, address: str) -> None:
        """That one is not there any more, neither as a courier."""
        for known in (self._planned, self.seen, self.used):
            known.pop(address, None)
            for other in [other for other, courier in known.items() if courier == address]:
                del known[other]


class Couriers:
    """Two levels: couriers of those that are talked to, and couriers of these couriers.

    Args:
        encode: makes frames of a message.
    """

    def __init__(self, encode: Callable[[Dispatch], Encoded]) -> None:
        self._encode = encode
        self.near, self.far = Level(), Level()

    def plan(self, groups: Iterable[Sequence[str]]) -> Mapping[str, Sequence[str]]:
        """Have the first of each group be its courier, and of many couriers the first of each group of them be theirs.

        Returns: whom each courier has yet to be seen to reach.
        """
        groups = list(groups)
        unseen = dict(self.near.plan(groups))
        for head, others in self.far.plan(_of_couriers([group[0] for group in groups])).items():
            unseen[head] += [address for address in others if address != head]
        return {courier: addresses for courier, addresses in unseen.items() if addresses}

    def forget(self, address: str) -> None:
        """That one is not there any more, neither as a courier."""
        for level in (self.near, self.far):
            level.forget(address)

    def sort(
        self, messages: Iterable[tuple[str, Encoded]], *, answered: bool
    ) -> Iterator[tuple[str, Encoded | Dispatch]]:
        """What to send to whom so that each gets its message; what is the same object for several travels once."""
        parts: dict[str, list[tuple[list[str], bytes]]] = {}
        for address, frames in messages:
            courier = self.near.used.get(address)
            if courier is None or len(frames[-1]) > LARGE_BYTES:
                yield address, frames
                continue
            mine = parts.setdefault(courier, [])
            if not mine or mine[-1][1] is not frames[-1]:
                mine.append(([], frames[-1]))
            mine[-1][0].append(address)
        for courier in [courier for courier in parts if self.far.used.get(courier, courier) != courier]:
            body = self._encode(_dispatch(parts.pop(courier), answered))[-1]
            parts.setdefault(self.far.used[courier], []).append(([courier], body))
        for courier, mine in parts.items():
            yield courier, _dispatch(mine, answered)


def _of_couriers(couriers: Sequence[str]) -> Iterator[Sequence[str]]:
    """Those for one courier of couriers each; none where they are few. Only on this host is a UNIX socket reached."""
    if len(couriers) > FAN_OUT:
        for is_here in (True, False):
            yield from _alike([address for address in couriers if address.startswith("ipc") == is_here])


def _dispatch(parts: Iterable[tuple[list[str], bytes]], answered: bool) -> Dispatch:
    return Dispatch(tuple((tuple(addresses), body) for addresses, body in parts), answered)
