"""Interfaces, addresses, routes, neighbours and queues, as netlink messages. Source: rtnetlink(7), tc-tbf(8),
tc-netem(8), the kernel's include/uapi/linux/{if_link,rtnetlink,neighbour,pkt_sched}.h.
"""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from pytest_nsbox.kernel.netlink import (
    CREATE,
    EXCLUSIVE,
    REPLACE,
    Message,
    Netlink,
    attribute,
    attributes,
    nested,
    text,
)  # fmt: skip

_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE, _GETROUTE = 16, 17, 20, 24, 26
_NEWNEIGH, _DELNEIGH, _NEWRULE, _NEWQDISC = 28, 29, 32, 36
_UP = 1
_FAMILIES = {4: AF_INET, 6: AF_INET6}
_LOCAL, _UNICAST = 2, 1  # kinds of routes
_MAIN = 254  # the table
_NO_DAD = 0x02
_PERMANENT = 0x80
_ROOT = 0xFFFFFFFF
_LONGEST_WAIT = 0.4  # seconds that a packet may wait for its turn under a rate, as tc's examples have it
_QUEUE = 10000  # packets that are on their way at the same time

# The end of a frame that nobody has: locally administered, and of no interface of ours.
NOBODY = bytes((0x02, 0, 0, 0, 0, 0))


def _interface(index: int, *, up: bool = True, change: bool = True) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, _UP if up else 0, _UP if change else 0)


def bridge(name: str, index: int) -> Message:
    """Make a bridge that is up."""
    body = _interface(index) + attribute(3, text(name)) + nested(18, attribute(1, text("bridge")))
    return Message(_NEWLINK, CREATE | EXCLUSIVE, body, ("make bridge", name))


def veth(name: str, index: int, bridge: int, peer: tuple[str, int, bytes, int]) -> Message:
    """Make a pair of interfaces: `name`, up and a port of `bridge`, and `peer` (name, index, MAC address and a
    descriptor of the network namespace that it is in), which cannot be up before there are both.
    """
    peer_name, peer_index, mac, namespace = peer
    other = (
        _interface(peer_index, up=False, change=False)
        + attribute(3, text(peer_name))
        + attribute(1, mac)
        + attribute(28, struct.pack("=I", namespace))
    )
    kind = nested(18, attribute(1, text("veth")), nested(2, attribute(1, other)))
    body = _interface(index) + attribute(3, text(name)) + attribute(10, struct.pack("=I", bridge)) + kind
    return Message(_NEWLINK, CREATE | EXCLUSIVE, body, ("make veth", f"{name} {peer_name}"))


def remove(name: str, index: int) -> Message:
    """Remove an interface, and its peer."""
    return Message(_DELLINK, 0, _interface(index, change=False), ("remove link", name))


def switch(name: str, index: int, *, up: bool) -> Message:
    """Take an interface up or down."""
    return Message(_NEWLINK, 0, _interface(index, up=up), ("set link", f"{name} {'up' if up else 'down'}"))


def _packed(address: str) -> tuple[int, bytes]:
    family = AF_INET6 if ":" in address else AF_INET
    return family, inet_pton(family, address)


def address(value: str, prefix: int, index: int) -> Message:
    """Give an interface an address, for use at once."""
    family, packed = _packed(value)
    body = struct.pack("=BBBBI", family, prefix, _NO_DAD if family == AF_INET6 else 0, 0, index)
    # IFA_LOCAL, IFA_ADDRESS
    body += attribute(2, packed) + attribute(1, packed)
    return Message(_NEWADDR, CREATE | EXCLUSIVE, body, ("add address", f"{value}/{prefix}"))


def default_route(gateway: str, index: int) -> Message:
    """Send what goes elsewhere to `gateway`."""
    family, packed = _packed(gateway)
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, _MAIN, 4, 0, _UNICAST, 0)
    body += attribute(5, packed) + attribute(4, struct.pack("=I", index))
    return Message(_NEWROUTE, CREATE | EXCLUSIVE, body, ("add route", f"default via {gateway}"))


def take_all(family: int, mark: int, table: int) -> list[Message]:
    """Have packets of `family` (4 or 6) with `mark` taken for ours, wherever they go. Source: tproxy.rst."""
    local = struct.pack("=BBBBBBBBI", _FAMILIES[family], 0, 0, 0, table, 4, 254, _LOCAL, 0)
    # Out of lo, which is number 1.
    local += attribute(4, struct.pack("=I", 1))
    rule = struct.pack("=BBBBBBBBI", _FAMILIES[family], 0, 0, 0, table, 0, 0, 1, 0)
    rule += attribute(10, struct.pack("=I", mark))
    return [
        Message(_NEWROUTE, CREATE | EXCLUSIVE, local, ("add route", "local default")),
        Message(_NEWRULE, CREATE | EXCLUSIVE, rule, ("add rule", f"fwmark {mark}")),
    ]


def lose(neighbour: str, index: int) -> Message:
    """Send what goes to `neighbour` to nobody."""
    family, packed = _packed(neighbour)
    body = struct.pack("=BxxxiHBB", family, index, _PERMANENT, 0, 0) + attribute(1, packed) + attribute(2, NOBODY)
    return Message(_NEWNEIGH, CREATE | REPLACE, body, ("set neighbour", neighbour))


def find_again(neighbour: str, index: int) -> Message:
    """Take `lose` back."""
    family, packed = _packed(neighbour)
    body = struct.pack("=BxxxiHBB", family, index, 0, 0, 0) + attribute(1, packed)
    return Message(_DELNEIGH, 0, body, ("remove neighbour", neighbour))


def limit(name: str, index: int, rate: int, *, below: bool) -> Message:
    """Let an interface send at `rate` bytes per second; `below` the delay of `disturb`."""
    # What comes in one go must be enough for a timer tick at that rate, and for the largest frame.
    burst = max(rate // 250, 16 * 1514)
    # tc_ratespec (linklayer Ethernet: no table wanted), then limit, buffer, mtu; the burst and the rate have 64 bits.
    spec = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, min(rate, 0xFFFFFFFF))
    parameters = spec + bytes(12) + struct.pack("=III", min(int(rate * _LONGEST_WAIT) + burst, 0x7FFFFFFF), 0, 0)
    options = (attribute(1, parameters), attribute(4, struct.pack("=Q", rate)), attribute(6, struct.pack("=I", burst)))
    parent = 1 << 16 | 1 if below else _ROOT
    body = struct.pack("=BxxxiIII", 0, index, 2 << 16, parent, 0)
    body += attribute(1, text("tbf")) + nested(2, *options)
    return Message(_NEWQDISC, CREATE | EXCLUSIVE, body, ("add qdisc", f"tbf on {name}"))


def disturb(name: str, index: int, delay: float, loss: float) -> Message:
    """Delay what an interface sends by so many seconds, and lose a part of it."""
    nanoseconds = round(delay * 1e9)
    # tc_netem_qopt: latency (in ticks of 64 ns), limit, loss, gap, duplicate, jitter
    options = struct.pack("=6I", min(nanoseconds >> 6, 0xFFFFFFFF), _QUEUE, round(loss * 0xFFFFFFFF), 0, 0, 0)
    options += attribute(10, struct.pack("=q", nanoseconds))
    body = struct.pack("=BxxxiIII", 0, index, 1 << 16, _ROOT, 0)
    body += attribute(1, text("netem")) + attribute(2, options)
    return Message(_NEWQDISC, CREATE | EXCLUSIVE, body, ("add qdisc", f"netem on {name}"))


def routes(link: Netlink) -> list[tuple[str, str]]:
    """Return (destination, interface) of every route to a network or an address, of all tables but for the default
    routes; addresses of the namespace itself are among them.
    """
    from _socket import if_indextoname

    found = []
    for family in (AF_INET, AF_INET6):
        body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)
        for _, content in link.dump(Message(_GETROUTE, 0, body, ("list routes", ""))):
            got, length, _, _, _, _, _, kind, _ = struct.unpack_from("=BBBBBBBBI", content)
            parts = dict(attributes(content[12:]))
            if got != family or not length or 1 not in parts or kind not in (_UNICAST, _LOCAL):
                continue
            index = struct.unpack("=I", parts[4])[0] if 4 in parts else 0
            try:
                interface = if_indextoname(index) if index else "?"
            except OSError:
                interface = str(index)
            found.append((f"{inet_ntop(family, parts[1])}/{length}", interface))
    return found
