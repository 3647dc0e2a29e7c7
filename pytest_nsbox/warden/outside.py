"""The way out of a network that is not internal: connections and datagrams that leave it are taken in its own
namespace, by sockets that answer for every address, and a process of the warden's makes them anew from the host's
network.

So the host gets no interface, route, rule or setting here either, whatever its firewall is; and it works for ordinary
users. What is neither TCP nor UDP (a ping) has no way out.
"""

from __future__ import annotations

import os
from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    SO_REUSEADDR,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)  # fmt: skip

from pytest_nsbox.kernel.namespaces import write_proc
from pytest_nsbox.policy import init_layer
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.warden.network import BRIDGE_INDEX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.warden.elsewhere import Elsewhere
    from pytest_nsbox.warden.network import Network
    from pytest_nsbox.warden.ports import Ports

# Of the network's own namespace, where nobody else listens.
_PORT = 1
_MARK = 1
_TABLE = 100
_BACKLOG = 128


def open_way(network: Network, elsewhere: Elsewhere, ports: Ports) -> None:
    """Give a network that was just made its way out. Raises BoxFailed or KernelError."""
    key = f"network {network.name}"
    ways: dict[str, list[int]] = {"tcp": [], "udp": [], "tcp names": [], "udp names": []}
    servers, _ = name_servers()
    try:
        elsewhere.open(network.namespace, _keep_to_the_bridge)
        for subnet, gateway in zip(network.subnets, network.gateways(), strict=True):
            version = 6 if ":" in subnet else 4
            network.interfaces.do(network.namespace, [("take_all", version, _MARK, _TABLE)])
            _hand_over(network, version, subnet)
            opened = elsewhere.open(network.namespace, lambda v=version, g=gateway: _open(v, g, names=bool(servers)))  # type: ignore[misc]
            for kind, fd in zip(ways, opened, strict=False):
                ways[kind].append(fd)
        network.endings.append(lambda: ports.drop(key))
        ports.give_way(key, network.namespace, ways, [(server, 53) for server in servers])
    finally:
        for fds in ways.values():
            for fd in fds:
                os.close(fd)


def _hand_over(network: Network, version: int, subnet: str) -> None:
    address, _, prefix = subnet.rpartition("/")
    try:
        where = (address, int(prefix))
        network.interfaces.hand_over(network.namespace, version, BRIDGE_INDEX, where, _PORT, _MARK)
    except KernelError as error:
        raise BoxFailed(
            f"network {network.name!r}: internal=False takes the kernel's nftables with tproxy (modprobe nft_tproxy): "
            f"{error}"
        ) from None


def _keep_to_the_bridge() -> list[int]:
    """In the network's namespace: where br_netfilter is loaded, the rule would be applied on the bridge already, and
    what it finds there is forgotten on the way up.
    """
    for name in ("iptables", "ip6tables"):
        path = f"/proc/sys/net/bridge/bridge-nf-call-{name}"
        if os.path.exists(path):
            write_proc(path, "0")
    return []


def _open(version: int, gateway: str, *, names: bool) -> list[int]:
    """In the network's namespace: open what takes connections and datagrams to everywhere, and to the name server."""
    everywhere = "::" if version == 6 else "0.0.0.0"
    wanted = [(SOCK_STREAM, everywhere, _PORT), (SOCK_DGRAM, everywhere, _PORT)]
    wanted += [(SOCK_STREAM, gateway, 53), (SOCK_DGRAM, gateway, 53)] if names else []
    return [_socket(version, *each).detach() for each in wanted]


def _socket(version: int, kind: int, address: str, port: int) -> socket:
    from pytest_nsbox.warden.outward import OPTIONS

    family = AF_INET6 if version == 6 else AF_INET
    level, transparent, original = OPTIONS[family]
    made = socket(family, kind | SOCK_NONBLOCK | SOCK_CLOEXEC)
    if version == 6:
        made.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
    made.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    made.setsockopt(level, transparent, 1)
    if kind == SOCK_DGRAM:
        made.setsockopt(level, original, 1)
    made.bind((address, port))
    if kind == SOCK_STREAM:
        made.listen(_BACKLOG)
    return made


def name_servers() -> tuple[list[str], list[str]]:
    """Return the host's name servers and search list, resolv.conf(5)."""
    servers, search = [], []
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            rows = [line.split() for line in file]
    except OSError:
        return [], []
    for row in rows:
        if row[:1] == ["nameserver"] and len(row) > 1 and "%" not in row[1]:
            servers.append(row[1])
        elif row[:1] in (["search"], ["domain"]):
            search = row[1:]
    return servers, search


def resolv_conf(network: Network) -> str:
    """Return the /etc/resolv.conf of a box in this network: the gateway asks the host's name servers."""
    servers, search = name_servers()
    return init_layer.resolv_conf(network.gateways()[:1] if servers else [], search)
