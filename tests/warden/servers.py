"""Servers in boxes of a network, and boxes that ask them."""

from __future__ import annotations

import sys
import time

from pytest_nsbox.container import Box
from pytest_nsbox.nsbox import NsBox
from pytest_nsbox.warden.client import Warden

# Sends what it is sent, and tells who asked, as long as it lives.
SERVER = """
import socket
server = socket.create_server(("::", 7), family=socket.AF_INET6, dualstack_ipv6=True)
print("up", flush=True)
while True:
    client, address = server.accept()
    client.sendall(address[0].removeprefix("::ffff:").encode())
    client.close()
"""
ASK = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 7), float(sys.argv[2])) as server:
        print(server.recv(100).decode(), end="")
except OSError as error:
    print(type(error).__name__, error, end="")
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


def serve(boxes: NsBox, name: str, net: object) -> Box:
    box = boxes.start(python(SERVER), name=name, net=net)
    wait_until(lambda: "up" in box.logs())
    return box


def ask(box: Box, name: str, patience: float = 5.0) -> str:
    """What the server `name` tells `box`, or the error."""
    return str(box.exec(python(ASK, name, str(patience)), check=True).stdout)


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def process_of(warden: Warden, name: str) -> int:
    """The one process of that name that the warden has started."""
    with open(f"/proc/{warden.pid}/task/{warden.pid}/children", encoding="ascii") as file:
        (found,) = [pid for pid in map(int, file.read().split()) if _name(pid) == name]
    return found


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="ascii") as file:
            return file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        # It has ended since.
        return ""
