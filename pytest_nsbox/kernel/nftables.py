"""A rule of nftables, as netlink messages: what leaves a network by TCP or UDP is handed to a socket of ours. Source:
the kernel's include/uapi/linux/netfilter/nf_tables.h and Documentation/networking/tproxy.rst.
"""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, inet_pton

from pytest_nsbox.kernel.netlink import CREATE, EXCLUSIVE, Message, attribute, nested, text

_SUBSYSTEM = 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = (_SUBSYSTEM << 8 | number for number in (0, 3, 6))
_APPEND = 0x800
_PREROUTING = 0
_MANGLE = -150  # the priority of changes to packets
_TABLE, _CHAIN = "nsbox", "out"
_FIRST, _SECOND = 1, 2  # registers
_EQUAL, _DIFFERENT = 0, 1
_MARK, _INTERFACE, _PROTOCOL = 3, 4, 16  # what `meta` knows
_TCP, _UDP = 6, 17
# Where the destination lies in the header, and how long it is.
_DESTINATION = {4: (16, 4), 6: (24, 16)}
_FAMILIES = {4: AF_INET, 6: AF_INET6}

BEGIN = END = struct.pack("=BBH", 0, 0, struct.unpack("=H", struct.pack("!H", _SUBSYSTEM))[0])


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!i", value))


def _value(kind: int, content: bytes) -> bytes:
    return nested(kind, attribute(1, content))


def _expression(name: str, *parts: bytes) -> bytes:
    return nested(1, attribute(1, text(name)), nested(2, *parts))


def _compare(content: bytes, how: int = _EQUAL) -> bytes:
    return _expression("cmp", _number(1, _FIRST), _number(2, how), _value(3, content))


def _set(register: int, content: bytes) -> bytes:
    return _expression("immediate", _number(1, register), _value(2, content))


def hand_over(version: int, interface: int, subnet: tuple[str, int], port: int, mark: int) -> list[Message]:
    """Have packets of IPv4 or IPv6 (4 or 6) that come in by the interface with that number, and go elsewhere than to
    `subnet` (address and prefix), taken by our transparent socket at `port`; they get `mark`.
    """
    family = _FAMILIES[version]
    head = struct.pack("=BBH", family, 0, 0)
    what = ("add nftables rule", f"IPv{version} {_TABLE}")
    offset, length = _DESTINATION[version]
    mask = ((1 << length * 8) - (1 << length * 8 - subnet[1])).to_bytes(length, "big")
    hook = nested(4, _number(1, _PREROUTING), _number(2, _MANGLE))
    chain = attribute(1, text(_TABLE)) + attribute(3, text(_CHAIN)) + hook + attribute(7, text("filter"))
    messages = [
        Message(_NEW_TABLE, CREATE | EXCLUSIVE, head + attribute(1, text(_TABLE)), what),
        Message(_NEW_CHAIN, CREATE | EXCLUSIVE, head + chain, what),
    ]
    for protocol in (_TCP, _UDP):
        rule = nested(
            4,
            _expression("meta", _number(1, _FIRST), _number(2, _INTERFACE)),
            _compare(struct.pack("=I", interface)),
            _expression("meta", _number(1, _FIRST), _number(2, _PROTOCOL)),
            _compare(bytes((protocol,))),
            _expression("payload", _number(1, _FIRST), _number(2, 1), _number(3, offset), _number(4, length)),
            _expression(
                "bitwise",
                _number(1, _FIRST),
                _number(2, _FIRST),
                _number(3, length),
                _value(4, mask),
                _value(5, bytes(length)),
            ),
            _compare(inet_pton(family, subnet[0]), _DIFFERENT),
            _set(_FIRST, struct.pack("=I", mark)),
            _expression("meta", _number(2, _MARK), _number(3, _FIRST)),
            _set(_SECOND, struct.pack("!H", port)),
            _expression("tproxy", _number(1, family), _number(3, _SECOND)),
        )
        body = head + attribute(1, text(_TABLE)) + attribute(2, text(_CHAIN)) + rule
        messages.append(Message(_NEW_RULE, CREATE | _APPEND, body, what))
    return messages
