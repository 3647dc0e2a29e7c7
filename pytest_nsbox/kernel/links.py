"""Interfaces, addresses, routes, neighbours and queues, through pyroute2. Source: rtnetlink(7), tc-tbf(8), tc-netem(8).

Only the process that `warden.interfaces` starts imports this: pyroute2 is 340 modules, and inits are forks of the
warden.
"""

from __future__ import annotations

import errno
import time
from _socket import AF_INET, AF_INET6

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_FAMILIES = {4: AF_INET, 6: AF_INET6}
_UNICAST, _LOCAL = 1, 2  # kinds of routes
_STATIC = 4  # who made a route: an administrator
_NO_DAD = 0x02
_LONGEST_WAIT = 0.4  # seconds that a packet may wait for its turn under a rate, as tc's examples have it
_QUEUE = 10000  # packets that are on their way at the same time

# A neighbour that has not answered when it was asked for its address. Source: linux/neighbour.h.
_INCOMPLETE, _FAILED = 0x01, 0x20

# Seconds; the kernel puts off news of a link for one second at most. Source: net/core/link_watch.c.
_LATEST_NEWS = 1.5

# The end of a frame that nobody has: locally administered, and of no interface of ours.
NOBODY = "02:00:00:00:00:00"


def attempt(call: str, target: str, function: Callable[..., object], *arguments: object, **keywords: object) -> Any:
    """Return what a function of pyroute2 returns; what the kernel refuses is a KernelError."""
    try:
        return function(*arguments, **keywords)
    except NetlinkError as error:
        raise KernelError(call, target, error.code) from None
    except OSError as error:
        raise KernelError(call, target, error.errno or 0) from None


class Links:
    """Those of the network namespace that we are in when this is made, wherever we go."""

    def __init__(self) -> None:
        self._route = attempt("socket", "AF_NETLINK", IPRoute)

    def close(self) -> None:
        """Close the socket."""
        self._route.close()

    def index(self, name: str) -> int:
        """Return the number of an interface. Raises KernelError."""
        found: list[int] = attempt("find link", name, self._route.link_lookup, ifname=name)
        if not found:
            raise KernelError("find link", name, errno.ENODEV)
        return found[0]

    def bridge(self, name: str, index: int) -> None:
        """Make a bridge that is up."""
        attempt("make bridge", name, self._route.link, "add", ifname=name, kind="bridge", index=index, state="up")

    def veth(self, name: str, index: int, bridge: int, peer: tuple[str, str, int]) -> None:
        """Make a pair of interfaces: `name`, up and a port of `bridge`, and `peer` (name, MAC address and a descriptor
        of the network namespace that it is in), which cannot be up before there are both.
        """
        other = {"ifname": peer[0], "address": peer[1], "net_ns_fd": peer[2]}
        keys = {"ifname": name, "kind": "veth", "index": index, "master": bridge, "state": "up", "peer": other}
        attempt("make veth", f"{name} {peer[0]}", self._route.link, "add", **keys)

    def remove(self, name: str, index: int) -> None:
        """Remove an interface, and its peer; one that is gone is no error."""
        try:
            attempt("remove link", name, self._route.link, "del", index=index)
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise

    def switch(self, name: str, state: str) -> None:
        """Take an interface "up" or "down"."""
        attempt("set link", f"{name} {state}", self._route.link, "set", index=self.index(name), state=state)

    def await_carrier(self, name: str) -> None:
        """Wait until an interface that was taken up sends: the kernel tells it later that the other end is up as well,
        and what is sent before is lost. One that is down is none to wait for.
        """
        index = self.index(name)
        end = time.monotonic() + _LATEST_NEWS
        while time.monotonic() < end:
            link = attempt("get link", name, self._route.get_links, index)[0]
            if link.get_attr("IFLA_OPERSTATE") == "UP" or link["state"] != "up":
                return
            time.sleep(0.001)

    def address(self, value: str, prefix: int, name: str) -> None:
        """Give an interface an address, for use at once."""
        keys: dict[str, object] = {"index": self.index(name), "address": value, "prefixlen": prefix}
        if ":" in value:
            keys |= {"family": AF_INET6, "flags": _NO_DAD}
        attempt("add address", f"{value}/{prefix}", self._route.addr, "add", **keys)

    def default_route(self, gateway: str, name: str) -> None:
        """Send what goes elsewhere to `gateway`."""
        family = AF_INET6 if ":" in gateway else AF_INET
        keys = {"gateway": gateway, "oif": self.index(name), "family": family, "proto": _STATIC}
        attempt("add route", f"default via {gateway}", self._route.route, "add", **keys)

    def take_all(self, version: int, mark: int, table: int) -> None:
        """Have packets of IPv4 or IPv6 (4 or 6) with `mark` taken for ours, wherever they go. Source: tproxy.rst."""
        everywhere = {"family": _FAMILIES[version], "dst": "::/0" if version == 6 else "0.0.0.0/0"}
        # Out of lo, which is number 1.
        keys = {"type": "local", "scope": "host", "proto": _STATIC, "table": table, "oif": 1}
        attempt("add route", "local default", self._route.route, "add", **everywhere, **keys)
        attempt(
            "add rule", f"fwmark {mark}", self._route.rule, "add", family=_FAMILIES[version], fwmark=mark, table=table
        )

    def lose(self, neighbour: str, name: str) -> None:
        """Send what goes to `neighbour` to nobody."""
        keys = {"dst": neighbour, "lladdr": NOBODY, "ifindex": self.index(name), "state": "permanent"}
        attempt("set neighbour", neighbour, self._route.neigh, "replace", **keys)

    def find_again(self, neighbour: str, name: str) -> None:
        """Take `lose` back."""
        attempt("remove neighbour", neighbour, self._route.neigh, "del", dst=neighbour, ifindex=self.index(name))

    def ask_again(self, name: str, neighbours: list[str]) -> None:
        """Forget that `neighbours`, or any at all if there are none, did not answer: who is asked in vain is asked
        again a second later, and not when the next packet goes there.
        """
        index = self.index(name)
        for known in attempt("list neighbours", name, lambda: list(self._route.get_neighbours(ifindex=index))):
            there = known.get_attr("NDA_DST")
            if known["state"] & (_INCOMPLETE | _FAILED) and (there in neighbours or not neighbours):
                try:
                    self.find_again(there, name)
                except KernelError as error:
                    # It has answered, or was given up.
                    if error.errno != errno.ENOENT:
                        raise

    def limit(self, name: str, rate: int, below: bool) -> None:  # noqa: FBT001  # called by what a message says
        """Let an interface send at `rate` bytes per second; `below` the delay of `disturb`."""
        # What comes in one go must be enough for a timer tick at that rate, and for the largest frame.
        burst = max(rate // 250, 16 * 1514)
        most = min(int(rate * _LONGEST_WAIT) + burst, 0x7FFFFFFF)
        keys = {"handle": "2:", "rate": rate, "burst": burst, "limit": most, **({"parent": "1:1"} if below else {})}
        attempt("add qdisc", f"tbf on {name}", self._route.tc, "add", "tbf", self.index(name), **keys)

    def disturb(self, name: str, delay: float, loss: float) -> None:
        """Delay what an interface sends by so many seconds, and lose a part of it."""
        keys = {"handle": "1:", "delay": round(delay * 1e6), "loss": loss * 100, "limit": _QUEUE}
        attempt("add qdisc", f"netem on {name}", self._route.tc, "add", "netem", self.index(name), **keys)

    def routes(self) -> list[tuple[str, str]]:
        """Return (destination, interface) of every route to a network or an address, of all tables but for the default
        routes; addresses of the namespace itself are among them.
        """
        names = {
            link["index"]: link.get_attr("IFLA_IFNAME") for link in attempt("list links", "", self._route.get_links)
        }
        found = []
        for family in (AF_INET, AF_INET6):
            for route in attempt("list routes", "", lambda f=family: list(self._route.get_routes(family=f))):
                there = route.get_attr("RTA_DST")
                if route["family"] == family and there and route["dst_len"] and route["type"] in (_UNICAST, _LOCAL):
                    index = route.get_attr("RTA_OIF")
                    found.append((f"{there}/{route['dst_len']}", str(names.get(index, index or "?"))))
        return found
