"""One network: a bridge in a network namespace of its own, and what connects boxes to it."""

from __future__ import annotations

import errno
import os

from pytest_nsbox.policy import networks
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.warden.interfaces import OTHER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import Any

    from pytest_nsbox.policy.networks import Shape
    from pytest_nsbox.warden.box import Box
    from pytest_nsbox.warden.elsewhere import Elsewhere
    from pytest_nsbox.warden.interfaces import Interfaces, Step

BRIDGE = "nsbr0"
BRIDGE_INDEX = 10
# A port of the bridge must not have the number of the interface in the box (which gets the lowest that is free): the
# kernel takes an interface whose peer has its own number for one without a peer, and waits up to a second before it
# says that the link is there.
FIRST_PORT = 1000
_LARGEST_NUMBER = 0xFFFF


class Member:
    """A box in a network. `names` are what others call it; `interface` is its own end, `port` the bridge's."""

    __slots__ = ("addresses", "box", "interface", "lost", "mac", "name", "names", "port", "title")

    def __init__(self, box: Box, name: str, names: tuple[str, ...], title: str) -> None:
        self.box = box
        self.name = name
        self.names = names
        # What it calls itself besides.
        self.title = title
        self.addresses: list[str] = []
        self.mac = b""
        self.interface = ""
        self.port = 0
        # Members that it cannot reach, nor they it.
        self.lost: set[str] = set()


class Network:
    """One network. Its namespace goes with `close`."""

    def __init__(self, name: str, interfaces: Interfaces, shape: Shape, owner: object) -> None:
        self.name = name
        self.interfaces = interfaces
        self.subnets: tuple[str, ...] = ()
        self.shape = shape
        self.owner: object | None = owner
        self.internal = True
        self.members: dict[str, Member] = {}
        self.namespace = -1
        # Kept by a claim: see Networks._claim.
        self.claims: list[socket] = []
        # What is to be done when it goes.
        self.endings: list[Callable[[], None]] = []
        self._number = 1
        # Ports that were made: of boxes that have ended the kernel removes them when it gets to it.
        self._used: set[int] = set()

    def gateways(self) -> list[str]:
        """Return its own addresses, those of the bridge."""
        return [networks.address_of(subnet, 1) for subnet in self.subnets]

    def open(self, elsewhere: Elsewhere) -> None:
        """Make it. Raises KernelError or BoxFailed."""
        self.namespace = elsewhere.make()
        steps: list[Step] = [("switch", "lo", "up"), ("bridge", BRIDGE, BRIDGE_INDEX)]
        steps += self._addresses(self.gateways(), BRIDGE)
        try:
            self.interfaces.do(self.namespace, steps)
        except KernelError as error:
            raise BoxFailed(f"network {self.name!r}: {error} (it takes a kernel with bridge and veth)") from None

    def _addresses(self, addresses: list[str], interface: str) -> list[Step]:
        prefixes = [int(subnet.rpartition("/")[2]) for subnet in self.subnets]
        return [("address", *pair, interface) for pair in zip(addresses, prefixes, strict=True)]

    def take_numbers(self, member: Member, session: bytes) -> None:
        """Give `member` the next addresses that nobody has. Raises BoxFailed if there are none left."""
        used = {other.port - FIRST_PORT for other in self.members.values()}
        for _ in range(_LARGEST_NUMBER):
            self._number += 1
            found = [networks.address_of(subnet, self._number) for subnet in self.subnets]
            if not all(found) or self._number > _LARGEST_NUMBER:
                if len(used) >= self._number - 2:
                    break
                self._number = 1
            elif self._number not in used:
                member.addresses, member.port = found, FIRST_PORT + self._number
                member.mac = networks.mac_of(self._number, session)
                return
        raise BoxFailed(f"network {self.name!r}: all addresses of {self.subnets[0]} are taken")

    def plug(self, member: Member, namespace: int) -> None:
        """Connect `member`, whose network namespace is `namespace`. Raises KernelError or BoxFailed."""
        port = f"port{member.port - FIRST_PORT}"
        peer = (member.interface, member.mac.hex(":"), OTHER)
        steps: list[Step] = self._clear(member.port)
        steps += [("veth", port, member.port, BRIDGE_INDEX, peer), *self._forms(port)]
        inside: list[Step] = [("switch", member.interface, "up"), *self._addresses(member.addresses, member.interface)]
        if not self.internal:
            inside += [("default_route", gateway, member.interface) for gateway in self.gateways()]
        inside.append(("await_carrier", member.interface))
        try:
            self.interfaces.do(self.namespace, steps, namespace)
        except KernelError as error:
            raise self._explained(error) from None
        self.interfaces.do(namespace, inside)

    def drop(self, box: Box) -> None:
        """Forget a box that has ended."""
        self.members = {name: m for name, m in self.members.items() if m.box is not box}

    def _clear(self, port: int) -> list[Step]:
        """Remove a port that another box had, if it is there still: that box's interface would answer as well."""
        if port in self._used:
            return [("remove", f"port{port - FIRST_PORT}", port)]
        self._used.add(port)
        return []

    def _forms(self, port: str) -> list[Step]:
        """Give a port the network's rate, delay and loss."""
        shape = self.shape
        disturbed = shape.delay is not None or shape.loss is not None
        steps: list[Step] = [("disturb", port, shape.delay or 0.0, shape.loss or 0.0)] if disturbed else []
        return steps + ([("limit", port, shape.rate, disturbed)] if shape.rate is not None else [])

    def _explained(self, error: KernelError) -> Exception:
        if error.errno != errno.ENOENT or error.call != "add qdisc":
            return error
        kind, keys = ("netem", "delay and loss take") if "netem" in error.target else ("tbf", "rate takes")
        return BoxFailed(
            f"network {self.name!r}: {keys} the kernel's sch_{kind}, which it does not have (modprobe sch_{kind})"
        )

    def member(self, name: str) -> Member:
        """Return the box of that name. Raises BoxFailed if it is not here."""
        try:
            return self.members[name]
        except KeyError:
            there = ", ".join(map(repr, self.members)) or "none"
            raise BoxFailed(f"network {self.name!r} has no box {name!r} (boxes in it: {there})") from None

    def close(self) -> None:
        """Let go of everything: with its last descriptor the kernel removes it."""
        while self.endings:
            self.endings.pop()()
        if self.namespace >= 0:
            os.close(self.namespace)
            self.namespace = -1
        for claim in self.claims:
            claim.close()
        self.claims.clear()

    def describe(self) -> dict[str, Any]:
        """Return what `docker network inspect` tells."""
        return {
            "Name": self.name,
            "Internal": self.internal,
            "Subnets": list(self.subnets),
            "Gateways": self.gateways(),
            "Containers": {member.name: entry(member) for member in self.members.values()},
        }


def entry(member: Member) -> dict[str, Any]:
    """Return what is told of a box in a network."""
    found = {"Interface": member.interface, "MacAddress": member.mac.hex(":"), "IPAddress": "", "GlobalIPv6Address": ""}
    for address in member.addresses:
        found["GlobalIPv6Address" if ":" in address else "IPAddress"] = address
    return found
