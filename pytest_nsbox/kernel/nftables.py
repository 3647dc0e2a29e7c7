"""A rule of nftables, through pyroute2: what leaves a network by TCP or UDP is handed to a socket of ours. Source: the
kernel's include/uapi/linux/netfilter/nf_tables.h and Documentation/networking/tproxy.rst.
"""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, inet_pton

from pyroute2.nftables.main import NFTables

from pytest_nsbox.kernel.links import attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MANGLE = -150  # the priority of changes to packets
_ACCEPT = 1
_TABLE, _CHAIN = "nsbox", "out"
_FIRST, _SECOND = 1, 2  # registers
_EQUAL, _DIFFERENT = 0, 1
_MARK, _INTERFACE, _PROTOCOL = 3, 4, 16  # what `meta` knows
_NETWORK_HEADER = 1
_TCP, _UDP = 6, 17
# Where the destination lies in the header, and how long it is.
_DESTINATION = {4: (16, 4), 6: (24, 16)}
_FAMILIES = {4: AF_INET, 6: AF_INET6}


def _expression(name: str, **parts: object) -> tuple[object]:
    attributes = [(f"NFTA_{name.upper()}_{key.upper()}", value) for key, value in parts.items()]
    return ({"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": attributes})]},)


def _value(content: bytes) -> object:
    return {"attrs": [("NFTA_DATA_VALUE", content)]}


def _compare(content: bytes, how: int = _EQUAL) -> tuple[object]:
    return _expression("cmp", sreg=_FIRST, op=how, data=_value(content))


def hand_over(version: int, interface: int, subnet: tuple[str, int], port: int, mark: int) -> None:
    """Have packets of IPv4 or IPv6 (4 or 6) that come into our network namespace by the interface with that number, and
    go elsewhere than to `subnet` (address and prefix), taken by our transparent socket at `port`; they get `mark`.
    """
    family = _FAMILIES[version]
    what = ("add nftables rule", f"IPv{version} {_TABLE}")
    offset, length = _DESTINATION[version]
    mask = ((1 << length * 8) - (1 << length * 8 - subnet[1])).to_bytes(length, "big")
    tables = attempt("socket", "NETLINK_NETFILTER", NFTables, nfgen_family=family)
    try:
        attempt(*what, tables.table, "add", name=_TABLE)
        chain: dict[str, Any] = {"hook": "prerouting", "type": "filter", "priority": _MANGLE, "policy": _ACCEPT}
        attempt(*what, tables.chain, "add", table=_TABLE, name=_CHAIN, **chain)
        for protocol in (_TCP, _UDP):
            expressions = [
                _expression("meta", dreg=_FIRST, key=_INTERFACE),
                _compare(struct.pack("=I", interface)),
                _expression("meta", dreg=_FIRST, key=_PROTOCOL),
                _compare(bytes((protocol,))),
                _expression("payload", dreg=_FIRST, base=_NETWORK_HEADER, offset=offset, len=length),
                _expression(
                    "bitwise", sreg=_FIRST, dreg=_FIRST, len=length, mask=_value(mask), xor=_value(bytes(length))
                ),
                _compare(inet_pton(family, subnet[0]), _DIFFERENT),
                _expression("immediate", dreg=_FIRST, data=_value(struct.pack("=I", mark))),
                _expression("meta", key=_MARK, sreg=_FIRST),
                _expression("immediate", dreg=_SECOND, data=_value(struct.pack("!H", port))),
                _expression("tproxy", family=family, reg_port=_SECOND),
            ]
            attempt(*what, tables.rule, "add", table=_TABLE, chain=_CHAIN, expressions=expressions)
    finally:
        tables.close()
