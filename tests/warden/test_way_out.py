"""The way out of a network: to a namespace that stands for the world, from one that stands for the host."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_nsbox.kernel import namespaces, process
from pytest_nsbox.kernel.links import Links
from pytest_nsbox.nsbox import NsBox
from tests.warden.boxes import in_a_process, started

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "bridge", "ipv6")

CLIENT = """
import socket
for address in (("192.0.2.2", 80), ("2001:db8::2", 80), ("192.0.2.1", 9)):
    try:
        with socket.create_connection(address, 5) as server:
            print(server.recv(100).decode())
    except OSError as error:
        print(type(error).__name__)
with open("/etc/resolv.conf") as file:
    name_server = file.read().split()
for address in ("192.0.2.2", name_server[1] if name_server else "192.0.2.2"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(5)
        try:
            asker.sendto(b"name", (address, 53))
            answer, sender = asker.recvfrom(100)
            print(answer.decode(), sender == (address, 53))
        except OSError as error:
            print(type(error).__name__)
"""


def world() -> int:
    """Fork a process with servers in a network namespace of its own; return a descriptor of that."""
    namespaces.unshare(namespaces.NEWNET)
    there = namespaces.open_namespace("self", "net")
    streams = [socket.create_server(("", 80)), socket.create_server(("::", 80), family=socket.AF_INET6)]
    asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asked.bind(("", 53))
    if os.fork() == 0:
        process.die_with_parent()

        def serve(server: socket.socket) -> None:
            while True:
                client, address = server.accept()
                client.sendall(f"you are {address[0]}".encode())
                client.close()

        for server in streams:
            threading.Thread(target=serve, args=(server,), daemon=True).start()
        while True:
            data, sender = asked.recvfrom(100)
            asked.sendto(data.upper(), sender)
    for each in (*streams, asked):
        each.close()
    return there


def play(directory: Path) -> tuple[list[str], list[str], list[str], list[str]]:
    """What boxes in a network with a way out, and in one without, find; the host's interfaces before and after."""
    namespaces.unshare(namespaces.NEWNS)
    resolv = directory / "resolv.conf"
    resolv.write_text("nameserver 192.0.2.2\n")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--bind", str(resolv), "/etc/resolv.conf"], check=True)
    there = world()
    namespaces.unshare(namespaces.NEWNET)
    host = Links()
    host.switch("lo", "up")
    host.bridge("br", 10)
    host.veth("port", 1000, 10, ("eth0", "02:00:00:00:00:07", there))
    for address, prefix in (("192.0.2.1", 24), ("2001:db8::1", 64)):
        host.address(address, prefix, "br")
    home = namespaces.open_namespace("self", "net")
    namespaces.setns(there, namespaces.NEWNET)
    other = Links()
    namespaces.setns(home, namespaces.NEWNET)
    for name in ("lo", "eth0"):
        other.switch(name, "up")
    for address, prefix in (("192.0.2.2", 24), ("2001:db8::2", 64)):
        other.address(address, prefix, "eth0")
    before = sorted(name for _, name in socket.if_nameindex())
    with started() as warden:
        boxes = NsBox(warden.connect, "/")
        found = []
        for network in (boxes.network("wan", internal=False), boxes.network("lan")):
            done = boxes.run([sys.executable, "-I", "-S", "-c", CLIENT], net=network, check=True)
            found.append(done.stdout.splitlines())
        during = sorted(name for _, name in socket.if_nameindex())
        boxes.close()
    return found[0], found[1], before, during


def test_a_network_has_a_way_out_only_when_it_is_asked_for(tmp_path: Path):
    out, inside, before, during = in_a_process(lambda: play(tmp_path))
    assert out == [
        "you are 192.0.2.1",
        "you are 2001:db8::1",
        # Nobody listens there.
        "ConnectionResetError",
        "NAME True",
        "NAME True",
    ]
    assert inside == ["OSError"] * 5
    assert before == during == ["br", "lo", "port"]
