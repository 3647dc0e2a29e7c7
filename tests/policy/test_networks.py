"""How networks and published ports are described, and what is wrong with a description."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox.policy import networks
from pytest_nsbox.policy.errors import BadValueError
from pytest_nsbox.policy.networks import Port


@pytest.mark.parametrize("name", ["lan", "net-1", "a.b_c-9", "9", "x" * 64])
def test_a_network_has_a_name(name: str):
    assert networks.parse_name(name) == name


@pytest.mark.parametrize("name", ["", "-x", "host", "none", "a b", "ä", "x" * 65, "a/b", 3, None])
def test_what_is_no_name_of_a_network(name: object):
    with pytest.raises(BadValueError, match="not a network's name"):
        networks.parse_name(name)


@pytest.mark.parametrize(
    ("value", "subnets"),
    [
        ("10.7.0.0/24", ("10.7.0.0/24",)),
        (" 192.168.9.0/30 ", ("192.168.9.0/30",)),
        ("fd00:7:0::/64", ("fd00:7::/64",)),
        (["fd00:7::/64", "10.7.0.0/24"], ("10.7.0.0/24", "fd00:7::/64")),
    ],
)
def test_a_subnet_is_a_network_in_cidr_notation(value: object, subnets: tuple[str, ...]):
    assert networks.parse_subnets(value) == subnets


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("10.7.0.0", "not a network"),
        ("10.7.0.1/24", "has host bits set"),
        ("10.7.0.0/33", "not a network: "),
        ("10.7.0.0/31", "too large a network, or too small"),
        ("10.0.0.0/7", "too large a network"),
        ("127.0.0.0/8", "no box can have an address in"),
        ("224.0.0.0/8", "no box can have an address in"),
        (["10.7.0.0/24", "10.8.0.0/24"], "two networks of the same family"),
        ([], "an empty list"),
        (7, "not a network"),
    ],
)
def test_what_is_wrong_with_a_subnet_is_told(value: object, reason: str):
    with pytest.raises(BadValueError) as caught:
        networks.parse_subnets(value)
    assert reason in caught.value.reason
    assert "CIDR" in caught.value.accepted


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        ("8mbit", 1_000_000),
        ("1kbit", 125),
        ("2 Gbit", 250_000_000),
        ("8000bit", 1000),
        ("1M", 1 << 20),
        ("1MiB/s", 1 << 20),
        (5000, 5000),
    ],
)
def test_a_rate_is_in_bits_or_in_bytes(value: object, rate: int):
    assert networks.parse_rate(value) == rate


@pytest.mark.parametrize("value", ["fast", "10mbits", "mbit", "-1M", 0, "124", True, None, 1.5, "bit", "1 bitbit"])
def test_what_is_no_rate(value: object):
    with pytest.raises(BadValueError) as caught:
        networks.parse_rate(value)
    assert "10mbit" in caught.value.accepted


def test_delay_and_loss():
    assert networks.parse_delay("50ms") == 0.05
    assert networks.parse_loss("5%") == 0.05
    assert networks.parse_loss(1) == 1
    with pytest.raises(BadValueError, match="longer than a minute"):
        networks.parse_delay("2m")
    with pytest.raises(BadValueError, match="more than all packets"):
        networks.parse_loss("101%")
    with pytest.raises(BadValueError, match="not a share of packets"):
        networks.parse_loss("some")


@pytest.mark.parametrize(
    ("value", "ports"),
    [
        ({80: 8080}, (Port(80, 8080),)),
        ({80: 0}, (Port(80, 0),)),
        ({"53/udp": 5353, 53: 5353}, (Port(53, 5353, "udp"), Port(53, 5353))),
        ({80: "127.0.0.1:8080"}, (Port(80, 8080, "tcp", "127.0.0.1"),)),
        (8080, (Port(8080, 0),)),
        ("8080", (Port(8080, 0),)),
        ("8080:80", (Port(80, 8080),)),
        (["8080:80/tcp", "5353:53/udp"], (Port(80, 8080), Port(53, 5353, "udp"))),
        ("127.0.0.1:8080:80/udp", (Port(80, 8080, "udp", "127.0.0.1"),)),
        ("[::1]:8080:80", (Port(80, 8080, "tcp", "::1"),)),
        ("localhost:8080:80", (Port(80, 8080),)),
        ("127.0.0.1::80", (Port(80, 0, "tcp", "127.0.0.1"),)),
        ("127.0.0.1:80", (Port(80, 0, "tcp", "127.0.0.1"),)),
    ],
)
def test_ports_are_published_as_docker_writes_it(value: object, ports: tuple[Port, ...]):
    assert networks.parse_publish(value) == ports


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({80: 65536}, "65536 is no port"),
        ({0: 80}, "'0' is no port"),
        ({"80": "web"}, "'web' is no port"),
        ({True: 80}, "'' is no port"),
        ("80/sctp", "'sctp' is no protocol"),
        ("0.0.0.0:80:80", "'0.0.0.0' is not the host's loopback"),
        ("a:b:c", "'c' is no port"),
        (["80", "80"], "the box's port 80/tcp is published twice"),
        (["9:80", "9:81"], "the host's port 9/tcp is wanted twice"),
        (None, "None is no port"),
    ],
)
def test_what_is_wrong_with_a_port_is_told(value: object, reason: str):
    with pytest.raises(BadValueError) as caught:
        networks.parse_publish(value)
    assert reason in caught.value.reason
    assert "BOX PORT" in caught.value.accepted


@given(st.text(max_size=20) | st.integers() | st.floats() | st.none() | st.lists(st.text(max_size=8), max_size=3))
def test_whatever_is_given_is_read_or_refused(value: object):
    parsers = (networks.parse_subnets, networks.parse_rate, networks.parse_delay, networks.parse_loss)
    for parse in (*parsers, networks.parse_publish):
        try:
            parse(value)
        except BadValueError as error:
            assert error.reason


def test_candidates_leave_out_what_the_host_has():
    assert networks.candidate(0, []) == "10.213.0.0/24"
    assert networks.candidate(257, []) == "10.214.1.0/24"
    assert networks.candidate(0, [("10.213.0.7/32", "eth0")]) == ""
    assert networks.candidate(0, [("10.0.0.0/8", "tun0")]) == ""
    assert networks.candidate(1, [("10.213.0.0/24", "eth0"), ("fd00::/8", "eth0")]) == "10.213.1.0/24"


def test_a_clash_names_the_route():
    routes = [("fd00::/64", "eth0"), ("192.168.0.0/16", "wlan0")]
    assert networks.clash("192.168.7.0/24", routes) == "192.168.0.0/16 on wlan0"
    assert networks.clash("10.7.0.0/24", routes) == ""


def test_addresses_are_counted_and_end():
    assert networks.address_of("10.7.0.0/30", 1) == "10.7.0.1"
    assert networks.address_of("10.7.0.0/30", 2) == "10.7.0.2"
    assert networks.address_of("10.7.0.0/30", 3) == ""
    assert networks.address_of("fd00::/126", 3) == "fd00::3"
    assert networks.unique_local(b"\x01\x02\x03\x04\x05", 7) == "fd01:203:405:7::/64"
