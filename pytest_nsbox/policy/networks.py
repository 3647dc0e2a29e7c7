"""Networks that boxes share: how a test describes one, its addresses, and the ports that boxes publish."""

from __future__ import annotations

from pytest_nsbox.policy import units
from pytest_nsbox.policy.errors import BadValueError
from pytest_nsbox.policy.record import keyword_record, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Network, IPv6Network

    Subnet = IPv4Network | IPv6Network

NAME = "a name of up to 64 letters, digits and _ . - (not the first), other than host and none"
SUBNET = (
    "a network in CIDR notation such as '10.7.0.0/24' (/8 to /30) or 'fd00:7::/64' (/32 to /126), or a list of one of "
    "each"
)
RATE = "bits per second such as '10mbit', '512kbit' or '1gbit', or bytes per second such as '1M' or 131072"
LOSS = "percent such as '5%', or a part of one such as 0.05"
PUBLISH = (
    "{BOX PORT: HOST PORT}, or a list of '[127.0.0.1:][HOST PORT:]BOX PORT[/udp]'; ports from 1 to 65535, a host port "
    "of 0 is any free one"
)
# Subnets to choose from: 10.213.0.0/24 to 10.216.255.0/24, a part of the private ranges (RFC 1918) that Docker, Podman,
# libvirt and Kubernetes leave alone.
POOL_FIRST = 213
POOL_SIZE = 1024
_LOCAL = ("127.0.0.1", "::1", "localhost")
_BIT_UNITS = {"bit": 1, "kbit": 1000, "mbit": 1000**2, "gbit": 1000**3}
_SHORTEST, _LONGEST = {4: 8, 6: 32}, {4: 30, 6: 126}


@keyword_record
class Shape:
    """What happens to packets on the way to each box: `rate` in bytes per second, `delay` in seconds, `loss` as a part
    of one. None: nothing.
    """

    rate: int | None = None
    delay: float | None = None
    loss: float | None = None


@record
class Port:
    """A port of a box that answers on the host's loopback; `host` 0 is any free one, `address` "" both loopbacks."""

    box: int
    host: int
    protocol: str = "tcp"
    address: str = ""

    def key(self) -> str:
        """Return how Docker writes the box's side: ``80/tcp``."""
        return f"{self.box}/{self.protocol}"


def is_word(value: str) -> bool:
    """Say if `value` is what names of boxes, networks and volumes are made of: letters, digits and _ . - after the
    first.
    """
    return value[:1].isalnum() and all(char.isascii() and (char.isalnum() or char in "_.-") for char in value)


def is_name(value: object) -> bool:
    """Say if `value` can name a network."""
    return isinstance(value, str) and len(value) <= 64 and is_word(value) and value not in ("host", "none")


def parse_name(value: object) -> str:
    """The name of a network."""
    if not isinstance(value, str) or not is_name(value):
        raise BadValueError("not a network's name", NAME)
    return value


def parse_subnets(value: object) -> tuple[str, ...]:
    """The networks of ``"10.7.0.0/24"`` or of a list of one of each family, as ipaddress writes them."""
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    found = [_parse_subnet(entry) for entry in entries]
    if not found or len({subnet.version for subnet in found}) != len(found):
        raise BadValueError("two networks of the same family" if found else "an empty list", SUBNET)
    return tuple(str(subnet) for subnet in sorted(found, key=lambda subnet: subnet.version))


def _parse_subnet(value: object) -> Subnet:
    import ipaddress  # 5 ms that only networks cost

    if not isinstance(value, (str, ipaddress.IPv4Network, ipaddress.IPv6Network)) or "/" not in str(value):
        raise BadValueError("not a network", SUBNET)
    try:
        subnet = ipaddress.ip_network(str(value).strip())
    except ValueError as error:
        # It says "has host bits set", and what is wrong with a number.
        raise BadValueError(f"not a network: {error}", SUBNET) from None
    if not _SHORTEST[subnet.version] <= subnet.prefixlen <= _LONGEST[subnet.version]:
        raise BadValueError("too large a network, or too small", SUBNET)
    if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local or subnet.is_unspecified:
        raise BadValueError("a network that no box can have an address in", SUBNET)
    return subnet


def parse_rate(value: object) -> int:
    """Bytes per second of ``"10mbit"`` (tc's units: powers of 1000), ``"1M"`` (bytes, powers of 1024) or a number."""
    try:
        if isinstance(value, str) and value.strip().lower().endswith("bit"):
            text = value.strip().lower()
            digits = text.rstrip("kmgbit").rstrip()
            number = units.parse_count(digits) * _BIT_UNITS[text[len(text.rstrip("kmgbit")) :]]
            rate = number // 8
        else:
            rate = units.parse_positive_size(value.strip().removesuffix("/s") if isinstance(value, str) else value)
    except (BadValueError, KeyError):
        raise BadValueError("not a rate", RATE) from None
    if not 125 <= rate < 2**32:
        raise BadValueError("slower than 1kbit, or faster than 34gbit", RATE)
    return rate


def parse_delay(value: object) -> float:
    """Seconds of ``"50ms"``, one way; at most a minute."""
    seconds = units.parse_duration(value)
    if seconds > 60:
        raise BadValueError("longer than a minute", units.DURATION)
    return seconds


def parse_loss(value: object) -> float:
    """The part of one that gets lost: of ``"5%"`` or ``0.05``."""
    try:
        part = units.parse_cpu(value)
    except BadValueError:
        raise BadValueError("not a share of packets", LOSS) from None
    if part > 1:
        raise BadValueError("more than all packets", LOSS)
    return part


def parse_publish(value: object) -> tuple[Port, ...]:
    """The ports of ``{80: 8080}``, ``{"53/udp": 0}`` or ``["8080:80", "127.0.0.1:5353:53/udp"]``."""
    if isinstance(value, dict):
        ports = [_parse_pair(box, host) for box, host in value.items()]
    else:
        entries = value if isinstance(value, (list, tuple)) else [value]
        ports = [_parse_port(entry) for entry in entries]
    seen: set[tuple[str, int, str]] = set()
    for port in ports:
        if (port.protocol, port.box, "") in seen:
            raise BadValueError(f"the box's port {port.key()} is published twice", PUBLISH)
        if port.host and (port.protocol, port.host, port.address or "host") in seen:
            raise BadValueError(f"the host's port {port.host}/{port.protocol} is wanted twice", PUBLISH)
        seen |= {(port.protocol, port.box, ""), (port.protocol, port.host, port.address or "host")}
    return tuple(ports)


def _parse_pair(box: object, host: object) -> Port:
    whole = str(box) if isinstance(box, (int, str)) and not isinstance(box, bool) else ""
    number, slash, protocol = whole.partition("/")
    address, _, port = host.rpartition(":") if isinstance(host, str) else ("", "", host)
    return Port(
        _port(number, 1),
        _port(port, 0),
        _protocol(protocol) if slash else "tcp",
        _address(address) if address else "",
    )


def _parse_port(value: object) -> Port:
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise BadValueError(f"{value!r} is no port", PUBLISH)
    text = str(value)
    rest, slash, protocol = text.strip().partition("/")
    before, _, box = rest.rpartition(":")
    address, colon, host = before.rpartition(":")
    if not before:
        host = "0"
    elif not colon and before.strip("[]") in _LOCAL:
        # Docker's "127.0.0.1::80" with one colon less, as people write it.
        address, host = before, "0"
    return Port(
        _port(box, 1),
        _port(host or "0", 0),
        _protocol(protocol) if slash else "tcp",
        _address(address) if colon or address else "",
    )


def _port(value: object, least: int) -> int:
    try:
        return units.parse_count(value, least, 65535)
    except BadValueError:
        raise BadValueError(f"{value!r} is no port", PUBLISH) from None


def _protocol(text: str) -> str:
    if text not in ("tcp", "udp"):
        raise BadValueError(f"{text!r} is no protocol that can be published (tcp and udp can)", PUBLISH)
    return text


def _address(text: str) -> str:
    address = text.strip("[]")
    if address not in _LOCAL:
        raise BadValueError(f"{address!r} is not the host's loopback, and ports are published on nothing else", PUBLISH)
    return "" if address == "localhost" else address


def candidate(number: int, routes: Sequence[tuple[str, str]]) -> str:
    """Return subnet `number` of those to choose from; "" if a route of the host's is in its way."""
    number %= POOL_SIZE
    subnet = f"10.{POOL_FIRST + number // 256}.{number % 256}.0/24"
    return "" if clash(subnet, [route for route in routes if route[0].startswith(("10.", "0.", "8."))]) else subnet


def unique_local(session: bytes, number: int) -> str:
    """Return an IPv6 network of a session's own (RFC 4193), by its 5 random bytes."""
    import ipaddress

    packed = b"\xfd" + session + number.to_bytes(2, "big") + bytes(8)
    return f"{ipaddress.IPv6Address(packed)}/64"


def address_of(subnet: str, number: int) -> str:
    """Return address `number` of a subnet, counted from 1; "" if it has no more."""
    import ipaddress

    whole = ipaddress.ip_network(subnet)
    # The last address of an IPv4 network is for all.
    last = whole.num_addresses - (2 if whole.version == 4 else 1)
    return str(whole[number]) if number <= last else ""


def clash(subnet: str, routes: Sequence[tuple[str, str]]) -> str:
    """Return which of `routes` (destination, interface) shares addresses with `subnet`, as a text; "" if none does."""
    import ipaddress

    wanted = ipaddress.ip_network(subnet)
    for route, interface in routes:
        other = ipaddress.ip_network(route)
        if other.version == wanted.version and other.overlaps(wanted):
            return f"{route} on {interface}"
    return ""


def mac_of(number: int, session: bytes) -> bytes:
    """Return the MAC address of a box: locally administered, no other's in this session."""
    return b"\x02\x42" + session[:2] + number.to_bytes(2, "big")
