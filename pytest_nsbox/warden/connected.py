"""What connects boxes, for one warden: networks, and ports that answer on the host; and what clients ask about them.

Imported with the first of them.
"""

from __future__ import annotations

import os

from pytest_nsbox.kernel.namespaces import write_proc
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.networks import Port
from pytest_nsbox.warden.elsewhere import Elsewhere
from pytest_nsbox.warden.network import entry
from pytest_nsbox.warden.networks import Networks
from pytest_nsbox.warden.ports import Ports, take

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pytest_nsbox.warden.box import Box, Undo
    from pytest_nsbox.warden.container import Container
    from pytest_nsbox.warden.containers import Containers
    from pytest_nsbox.warden.order import Connection, Order
    from pytest_nsbox.warden.ports import Published


def _open_all_ports() -> list[int]:
    """In the network of a box: let who is not root there take ports below 1024, as Docker does."""
    write_proc("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
    return []


class Connected:
    """See above."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers
        server = containers.server
        self._elsewhere = Elsewhere(server.doors)
        self._ports = Ports(server, self._elsewhere)
        self.networks = Networks(containers, self._elsewhere, self._ports)
        # Names of boxes.
        self._publishing: set[str] = set()

    def connect(self, container: Container, box: Box, undo: Undo, publish: Sequence[Sequence[Any]]) -> None:
        """Take a container's new box into its network, and publish its ports. Raises BoxFailed or KernelError; the box
        is gone then.
        """
        spec = container.spec
        undo.add(lambda: self.leave(box))
        try:
            if not container.joined:
                self._elsewhere.open(box.pidfd, _open_all_ports)
            if spec.net not in ("host", "none"):
                self.networks.join(spec.net, box, container.name, spec.hostname)
            self._describe(container, box)
            if publish:
                self._publish(container, box, [Port(*values) for values in publish])
        except BaseException:
            undo.run()
            raise

    def _describe(self, container: Container, box: Box) -> None:
        found = self.networks.of(box)
        container.networks = {network.name: entry(member) for network, member in found}
        if found:
            container.reached["ip"] = found[0][1].addresses[0]

    def _publish(self, container: Container, box: Box, ports: list[Port]) -> None:
        taken: list[Published] = []
        try:
            taken += [take(port) for port in ports]
            found = self.networks.of(box)
            doors = self._containers.server.doors
            # From the network's own end, as a machine in it would come; or inside the box, where it has nothing else.
            namespace = found[0][0].namespace if found else doors.open_namespace(box.pid, "net")
            try:
                for published in taken:
                    addresses = found[0][1].addresses if found else ["127.0.0.1", "::1"]
                    targets = [(address, published.port.box) for address in addresses]
                    self._ports.give(box.name, published, namespace, targets)
                    self._publishing.add(box.name)
            finally:
                if not found:
                    os.close(namespace)
        finally:
            for published in taken:
                published.close()
        container.reached["ports"] = {published.port.key(): published.number for published in taken}

    def leave(self, box: Box) -> None:
        """The box has ended, or could not be made."""
        self.networks.leave(box)
        if box.name in self._publishing:
            self._publishing.discard(box.name)
            self._ports.drop(box.name)

    def disown(self, connection: Connection) -> None:
        """A client is gone."""
        self.networks.disown(connection)

    def serve(self, order: Order) -> object:
        """Do what a client asks of a network: `what` says which act. Raises BoxFailed or KernelError."""
        session = self._containers.server.session
        if session is None or self._containers.server.failure:
            raise BoxFailed(self._containers.server.failure)
        head = order.head
        what, name = head["what"], head["name"]
        if what == "make":
            network, made = self.networks.make(head, self if head.get("detached") else order.connection)
            return {**network.describe(), "made": made}
        if what == "inspect":
            self.networks.prune()
            return self.networks.find(name).describe()
        if what == "join":
            self._join_test(name, head["box"], head.get("hostname"))
        elif what == "remove":
            self.networks.remove(name)
        elif what == "link":
            self.networks.set_link(name, head["box"], up=head["up"])
        elif what == "path":
            self.networks.set_path(name, *head["boxes"], there=head["there"])
        else:
            raise BoxFailed(f"networks cannot {what!r}")
        return None

    def _join_test(self, name: str, called: str, hostname: str | None) -> None:
        """Take the box of a test in, which leaves when it ends."""
        server = self._containers.server
        box = server.boxes.get(called)
        if box is None:
            raise BoxFailed(f"there is no box {called}")
        self.networks.join(name, box, called, hostname)
        reap = server.watched[box.pidfd]

        def ended() -> None:
            reap()
            if box.reaped:
                self.leave(box)

        server.watched[box.pidfd] = ended

    def close(self) -> None:
        """The warden ends."""
        self._ports.close()
        self.networks.close()
        self._elsewhere.close()
