"""Attempts on the host's network: with net=False to reach it at all, with net=True to change it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from tests.escapes.attempt import HeldError, Place, attempt

SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
NLMSG_ERROR, RTM_NEWLINK, RTM_NEWROUTE = 2, 16, 24
NETLINK_NETFILTER, NFT_GET_TABLE = 12, 10 << 8 | 1
REQUEST, ACK = 1, 4
IFF_UP = 1
SO_MARK = 36


def connect(family: int, address: object) -> None:
    with socket.socket(family) as sock:
        sock.settimeout(5)
        sock.connect(address)  # type: ignore[arg-type]


@attempt(none="ECONNREFUSED")
def loopback_of_the_host(at: Place) -> None:
    connect(socket.AF_INET, ("127.0.0.1", at.port))


@attempt(none="ECONNREFUSED")
def loopback_of_the_host_by_ipv6(at: Place) -> None:
    connect(socket.AF_INET6, ("::ffff:127.0.0.1", at.port))


@attempt(none="ENETUNREACH", absent=("EADDRNOTAVAIL",))
def address_of_the_host(at: Place) -> None:
    if not at.address:
        raise OSError(errno.EADDRNOTAVAIL, "loopback alone")
    connect(socket.AF_INET, (at.address, at.port))


@attempt(none="ECONNREFUSED")
def abstract_socket_of_the_host(at: Place) -> None:
    connect(socket.AF_UNIX, "\0" + at.abstract)


@attempt(none="ECONNREFUSED")
def socket_of_the_host_by_its_path(at: Place) -> None:
    connect(socket.AF_UNIX, at.socket)


@attempt(none="ECONNREFUSED")
def socket_of_the_host_below_the_cover(at: Place) -> None:
    """Where boxes keep a second view of the root for boxes in them."""
    connect(socket.AF_UNIX, ("/dev/.nsbox/0" if at.inside else "") + at.socket)


@attempt(none="there is lo alone")
def interfaces_of_the_host(at: Place) -> None:
    if {name for _, name in socket.if_nameindex()} <= {"lo"}:
        raise HeldError("there is lo alone")


@attempt(none="its own")
def listeners_of_the_host(at: Place) -> None:
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        if at.abstract not in file.read():
            raise HeldError("its own")


def loopback_up() -> None:
    with socket.socket() as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))


@attempt(host="EPERM")
def interface_of_the_host(at: Place) -> None:
    with socket.socket() as sock:
        request = fcntl.ioctl(sock, SIOCGIFFLAGS, b"lo".ljust(40, b"\0"))
        fcntl.ioctl(sock, SIOCSIFFLAGS, request)


# Both are incomplete: what the kernel says of that comes after it has found our rights to be enough.
@attempt(host="EPERM")
def interface_made_on_the_host(at: Place) -> None:
    netlink(socket.NETLINK_ROUTE, RTM_NEWLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0))


@attempt(host="EPERM")
def route_of_the_host(at: Place) -> None:
    netlink(socket.NETLINK_ROUTE, RTM_NEWROUTE, struct.pack("=8BI", socket.AF_INET, 32, 0, 0, 254, 3, 0, 1, 0))


@attempt(host="EPERM", absent=("EPROTONOSUPPORT",))
def firewall_of_the_host(at: Place) -> None:
    netlink(NETLINK_NETFILTER, NFT_GET_TABLE, struct.pack(">BBH", 0, 0, 0))


def netlink(protocol: int, kind: int, body: bytes) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.send(struct.pack("=IHHII", 16 + len(body), kind, REQUEST | ACK, 1, 0) + body)
        answer = sock.recv(8192)
    assert struct.unpack_from("=H", answer, 4)[0] == NLMSG_ERROR
    number = -struct.unpack_from("=i", answer, 16)[0]
    if number == errno.EPERM:
        raise PermissionError(number, os.strerror(number))


@attempt(host="EPERM")
def packets_of_the_host(at: Place) -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)).close()


@attempt(host="EPERM")
def raw_socket_on_the_host(at: Place) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


@attempt(host="EACCES")
def port_of_a_service_of_the_host(at: Place) -> None:
    with socket.socket() as sock:
        for port in range(600, 700):
            try:
                sock.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise
            return


@attempt(host="EPERM")
def mark_that_firewalls_let_pass(at: Place) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 1)
