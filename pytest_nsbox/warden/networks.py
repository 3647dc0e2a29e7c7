"""Networks: each a bridge in a network namespace of its own, with a pair of interfaces to each of its boxes.

Nothing of them is in the host's network namespace. The warden holds the descriptors that keep a network's namespace
alive, so whatever ends the warden ends the networks, with all interfaces in them; and two networks have no way to each
other. A box finds the others by name in its own /etc/hosts, which is rewritten, in place, as boxes come and go.
"""

from __future__ import annotations

import errno
import os
from _socket import AF_INET6, AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket

from pytest_nsbox.policy import init_layer, networks
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.warden.elsewhere import Elsewhere
from pytest_nsbox.warden.interfaces import Interfaces
from pytest_nsbox.warden.network import FIRST_PORT, Member, Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from pytest_nsbox.warden.box import Box
    from pytest_nsbox.warden.containers import Containers
    from pytest_nsbox.warden.interfaces import Step
    from pytest_nsbox.warden.order import Connection
    from pytest_nsbox.warden.ports import Ports


class Networks:
    """The networks of one warden, by name."""

    def __init__(self, containers: Containers, elsewhere: Elsewhere, ports: Ports) -> None:
        self.containers = containers
        self.elsewhere = elsewhere
        self._ports = ports
        self._interfaces = Interfaces(containers.server)
        self.by_name: dict[str, Network] = {}
        self._made = 0
        self._session = os.urandom(5)

    # --- making and removing

    def make(self, wanted: dict[str, Any], owner: object) -> tuple[Network, bool]:
        """Return the network that `wanted` describes, and whether it is new. Raises BoxFailed or KernelError."""
        shape = networks.Shape(rate=wanted["rate"], delay=wanted["delay"], loss=wanted["loss"])
        found = self.by_name.get(wanted["name"] or "")
        if found is not None:
            same = wanted["subnets"] in ([], list(found.subnets[: len(wanted["subnets"])]))
            if not same or shape not in (networks.Shape(), found.shape) or wanted["internal"] != found.internal:
                raise BoxFailed(f"there is a network {found.name!r} already, and it is another one")
            return found, False
        self._made += 1
        name = wanted["name"] or f"net-{self._made}"
        if name in self.by_name:
            raise BoxFailed(f"there is a network {name!r} already")
        network = Network(name, self._interfaces, shape, owner)
        try:
            network.subnets = self._subnets(tuple(wanted["subnets"]), network)
            network.internal = wanted["internal"]
            network.open(self.elsewhere)
            if not network.internal:
                from pytest_nsbox.warden import outside

                outside.open_way(network, self.elsewhere, self._ports)
        except BaseException:
            network.close()
            raise
        self.by_name[name] = network
        return network, True

    def _subnets(self, wanted: tuple[str, ...], network: Network) -> tuple[str, ...]:
        routes = self._interfaces.routes()
        for subnet in wanted:
            other = networks.clash(subnet, routes)
            if other:
                raise BoxFailed(f"subnet={subnet!r}: the host has {other}, and a box could not reach both")
            for there in self.by_name.values():
                if networks.clash(subnet, [(own, there.name) for own in there.subnets]):
                    raise BoxFailed(f"subnet={subnet!r}: the network {there.name!r} has addresses of it")
        subnets = list(wanted)
        if not any("." in subnet for subnet in wanted):
            subnets.insert(0, self._claim(routes, network))
        if not any(":" in subnet for subnet in wanted) and _has_ipv6():
            subnets.append(networks.unique_local(self._session, self._made))
        return tuple(subnets)

    def _claim(self, routes: list[tuple[str, str]], network: Network) -> str:
        """Return a subnet that no route of the host's and no network of another run has.

        An abstract unix socket with its name says that it is taken: such names are the network namespace's own, and
        end with whoever has them.
        """
        used = [(own, "") for other in self.by_name.values() for own in other.subnets]
        for number in range(networks.POOL_SIZE):
            subnet = networks.candidate(number, [*routes, *used])
            if not subnet:
                continue
            claim = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
            try:
                claim.bind(f"\0pytest-nsbox/subnet/{subnet}".encode())
            except OSError as error:
                claim.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            network.claims.append(claim)
            return subnet
        raise BoxFailed("every subnet from 10.213.0.0/24 to 10.216.255.0/24 is in use: name one with subnet=")

    def find(self, name: str) -> Network:
        """Return the network of that name. Raises BoxFailed if there is none."""
        try:
            return self.by_name[name]
        except KeyError:
            there = ", ".join(map(repr, self.by_name)) or "none"
            raise BoxFailed(
                f"net={name!r}: there is no such network (there are: {there}); nsbox.network({name!r}) makes it"
            ) from None

    def remove(self, name: str) -> None:
        """Remove a network that no box is in. Raises BoxFailed."""
        network = self.find(name)
        self.prune()
        if network.members:
            users = ", ".join(sorted(network.members))
            raise BoxFailed(f"the network {name!r} is in use by {users}")
        del self.by_name[name]
        network.close()

    def disown(self, connection: Connection) -> None:
        """Who made these is gone: they go with their last box."""
        for network in list(self.by_name.values()):
            if network.owner is connection:
                network.owner = None
        self.prune()

    # --- boxes in them

    def join(self, name: str, box: Box, called: str, hostname: str | None) -> None:
        """Take a box with a network namespace of its own into network `name`; `called` is what others call it.

        Raises BoxFailed or KernelError; the box must be ended then.
        """
        network = self.find(name)
        self.prune()
        if called in network.members:
            raise BoxFailed(f"the box {called!r} is in the network {name!r} already")
        names = (called,) if hostname in (None, called) else (called, hostname or "")
        member = Member(box, called, names, hostname or os.uname().nodename)
        network.take_numbers(member, self._session)
        taken = sum(called in other.members for other in self.by_name.values())
        member.interface = f"eth{taken}"
        namespace = self.containers.server.doors.open_namespace(box.pid, "net")
        try:
            network.plug(member, namespace)
        finally:
            os.close(namespace)
        network.members[called] = member
        self._tell([network])
        if not network.internal:
            from pytest_nsbox.warden import outside

            _write(box, "resolv.conf", outside.resolv_conf(network))

    def leave(self, box: Box) -> None:
        """A box has ended; its interfaces go with it."""
        left = [network for network in self.by_name.values() for m in network.members.values() if m.box is box]
        for network in left:
            network.drop(box)
        if left:
            self._tell(left)
        for network in left:
            self._drop_if_orphaned(network)

    def prune(self) -> None:
        """Forget boxes that have ended without saying so: those of tests."""
        gone = {m.box.name: m.box for n in self.by_name.values() for m in n.members.values() if _has_ended(m.box)}
        for box in gone.values():
            self.leave(box)
        for network in list(self.by_name.values()):
            self._drop_if_orphaned(network)

    def _drop_if_orphaned(self, network: Network) -> None:
        if network.owner is None and not network.members and self.by_name.get(network.name) is network:
            del self.by_name[network.name]
            network.close()

    def of(self, box: Box) -> list[tuple[Network, Member]]:
        """Return the networks that a box is in."""
        return [(n, m) for n in self.by_name.values() for m in n.members.values() if m.box is box]

    def _tell(self, changed: list[Network]) -> None:
        """Write the names of all members into the /etc/hosts of each box of these networks."""
        for box in {m.box.name: m.box for network in changed for m in network.members.values()}.values():
            rows: list[tuple[str, tuple[str, ...]]] = []
            for network, own in self.of(box):
                # Its own addresses first: what it is called must not depend on who else came.
                own_names = tuple(dict.fromkeys((*own.names, own.title)))
                rows[:0] = [(address, own_names) for address in own.addresses]
                rows += [(a, m.names) for m in network.members.values() if m is not own for a in m.addresses]
            _write(box, "hosts", init_layer.hosts(addresses=rows))

    # --- links that are cut

    def set_link(self, name: str, called: str, *, up: bool) -> None:
        """Pull the cable of a box, or plug it in again. Raises BoxFailed or KernelError."""
        network = self.find(name)
        member = network.member(called)
        port = f"port{member.port - FIRST_PORT}"
        if not up:
            self._interfaces.do(network.namespace, [("switch", port, "down")])
            return
        self._interfaces.do(network.namespace, [("switch", port, "up")])
        # Who sends to it from now on must reach it, whatever was asked in vain before. The kernel tells both ends of a
        # link in one go that they are up.
        self._in_box(member, [("await_carrier", member.interface), ("ask_again", member.interface, [])])
        for other in network.members.values():
            if other is not member:
                self._in_box(other, [("ask_again", other.interface, member.addresses)])

    def set_path(self, name: str, first: str, second: str, *, there: bool) -> None:
        """Let two boxes reach each other, or not. Raises BoxFailed or KernelError."""
        network = self.find(name)
        one, other = network.member(first), network.member(second)
        if one is other:
            raise BoxFailed(f"network {name!r}: the box {first!r} has no link to itself")
        if (second not in one.lost) is there:
            return
        for here, away in ((one, other), (other, one)):
            self._set_neighbours(here, away.addresses, there=there)
            (here.lost.discard if there else here.lost.add)(away.name)

    def _set_neighbours(self, member: Member, addresses: Iterable[str], *, there: bool) -> None:
        how = "find_again" if there else "lose"
        self._in_box(member, [(how, address, member.interface) for address in addresses])

    def _in_box(self, member: Member, steps: list[Step]) -> None:
        namespace = self.containers.server.doors.open_namespace(member.box.pid, "net")
        try:
            self._interfaces.do(namespace, steps)
        finally:
            os.close(namespace)

    def close(self) -> None:
        """The warden ends."""
        for network in self.by_name.values():
            network.close()
        self.by_name.clear()
        self._interfaces.close()


def _has_ipv6() -> bool:
    try:
        socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC).close()
    except OSError:
        return False
    return True


def _has_ended(box: Box) -> bool:
    return box.released or box.reaped


def _write(box: Box, name: str, text: str) -> None:
    """Replace a file of the box's own in /etc in one write: it must never be seen empty, or with half a line."""
    if name not in box.tree.init_files:
        return
    try:
        fd = os.open(box.tree.init_file(name), os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # The box was removed.
        return
    try:
        data = text.encode()
        # What is longer is replaced by empty lines first, which then can go.
        os.pwrite(fd, data.ljust(os.fstat(fd).st_size, b"\n"), 0)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)
