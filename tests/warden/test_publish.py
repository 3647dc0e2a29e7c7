"""Published ports: a box's servers answer on the host's loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pytest_nsbox import BoxFailed
from pytest_nsbox.nsbox import NsBox
from pytest_nsbox.policy.errors import SpecProblems
from pytest_nsbox.warden.client import Warden
from tests.warden.servers import process_of

# The warden's connection and the boxes' processes stay for the module.
pytestmark = [pytest.mark.keeps_running, pytest.mark.needs("bridge")]

# Each connection gets back what it sent, in capitals, when it has said all.
SERVER = """
import socket, sys, threading
server = socket.create_server(("", 80))
def serve(client):
    data = b""
    while part := client.recv(65536):
        data += part
    client.sendall(data.upper())
    client.close()
while True:
    threading.Thread(target=serve, args=(server.accept()[0],)).start()
"""
ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 53))
print("up", flush=True)
while True:
    data, sender = server.recvfrom(65536)
    server.sendto(data.upper(), sender)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def say(port: int, data: bytes, host: str = "127.0.0.1") -> bytes:
    with socket.create_connection((host, port), 5) as server:
        server.sendall(data)
        server.shutdown(socket.SHUT_WR)
        parts = []
        while part := server.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("net", [None, False, "lan"])
def test_a_published_port_answers_at_once(boxes: NsBox, net: object):
    # The first connection waits for the server: it needs longer to begin than `start` does.
    keys: dict[str, Any] = {} if net is None else {"net": net}
    if net == "lan":
        boxes.network("lan")
    box = boxes.start(python(SERVER), publish={80: 0}, **keys)
    assert list(box.ports) == [80]
    assert say(box.ports[80], b"hello") == b"HELLO"
    assert say(box.ports[80], b"x" * 3_000_000) == b"X" * 3_000_000


@pytest.mark.needs("ipv6")
def test_it_answers_on_both_loopbacks(boxes: NsBox):
    box = boxes.start(python(SERVER), publish=80)
    assert say(box.ports[80], b"six", "::1") == b"SIX"
    only = boxes.start(python(SERVER), publish="127.0.0.1::80")
    with pytest.raises(ConnectionRefusedError):
        say(only.ports[80], b"six", "::1")


def test_many_connections_at_once(boxes: NsBox):
    box = boxes.start(python(SERVER), publish={80: 0})
    texts = [b"%d " % number * 1000 for number in range(40)]
    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(lambda text: say(box.ports[80], text), texts)) == texts


def test_a_client_that_reads_nothing_keeps_nobody_else_waiting(boxes: NsBox):
    pour = """
import socket
server = socket.create_server(("", 80))
while True:
    client, _ = server.accept()
    client.sendall(bytes(1 << 24))
    client.close()
"""
    box, other = boxes.start(python(pour), publish=80), boxes.start(python(SERVER), publish=80)
    with socket.create_connection(("127.0.0.1", box.ports[80]), 5) as lazy:
        assert say(other.ports[80], b"quick") == b"QUICK"
        size = 0
        while part := lazy.recv(1 << 20):
            size += len(part)
        assert size == 1 << 24


def test_datagrams_too(boxes: NsBox):
    box = boxes.start(python(ECHO), publish={"53/udp": 0})
    while "up" not in box.logs():
        time.sleep(0.01)
    assert list(box.ports) == ["53/udp"]
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        for client, text in ((one, b"one"), (two, b"two"), (one, b"three")):
            client.settimeout(5)
            client.sendto(text, ("127.0.0.1", box.ports["53/udp"]))
            assert client.recv(100) == text.upper()


def test_a_port_that_nobody_listens_on_is_an_error_after_a_while(boxes: NsBox):
    box = boxes.start(["sleep", "60"], publish=80)
    with pytest.raises(ConnectionResetError):
        say(box.ports[80], b"")
    with pytest.raises(ConnectionResetError):
        say(box.ports[80], b"")


def test_the_port_is_free_again_when_the_box_has_ended(boxes: NsBox):
    with boxes.start(python(SERVER), publish=80) as box:
        port = box.ports[80]
        with socket.create_connection(("127.0.0.1", port), 5) as open_one:
            assert say(port, b"a") == b"A"
            with pytest.raises(BoxFailed, match=rf"publish 81/tcp on 127.0.0.1:{port}: Address already in use"):
                boxes.start(["sleep", "60"], publish={81: port})
            box.kill()
            with contextlib.suppress(ConnectionResetError):
                assert open_one.recv(10) == b""
    for text in (b"b", b"c", b"d"):
        with boxes.start(python(SERVER), publish={80: port}) as again:
            assert again.ports == {80: port}
            assert say(port, text) == text.upper()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"publish": {80: 0}, "net": True}, "the box has the host's network, and its ports are the host's already"),
        ({"publish": "0.0.0.0:80:80"}, "'0.0.0.0' is not the host's loopback"),
        ({"publish": {80: 70000}}, "70000 is no port"),
    ],
)
def test_what_is_wrong_is_told(boxes: NsBox, keys: dict[str, Any], text: str):
    with pytest.raises(SpecProblems) as caught:
        boxes.start(["true"], **keys)
    assert str(caught.value).startswith("nsbox.start: publish=")
    assert text in str(caught.value)
    assert "(accepted: " in str(caught.value)


def test_another_carrier_takes_over_when_somebody_killed_it(warden: Warden, boxes: NsBox):
    box = boxes.start(python(SERVER), publish=80)
    assert say(box.ports[80], b"a") == b"A"
    os.kill(process_of(warden, "nsbox-forward"), signal.SIGKILL)
    again = boxes.start(python(SERVER), publish=80)
    assert say(again.ports[80], b"b") == b"B"
    with pytest.raises(ConnectionRefusedError):
        say(box.ports[80], b"a")
