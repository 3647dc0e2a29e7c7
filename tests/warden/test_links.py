"""Slow and lossy networks: the virtual machine's kernel has netem."""

from __future__ import annotations

import os
import time

import pytest

from pytest_nsbox import BoxFailed
from pytest_nsbox.nsbox import NsBox
from tests.warden.servers import ask, python, serve, wait_until

# The warden's connection and the boxes' processes stay for the module.
pytestmark = [pytest.mark.keeps_running, pytest.mark.needs("bridge")]


class TestShapes:
    def test_a_rate_is_kept(self, boxes: NsBox):
        slow = boxes.network(rate="8mbit")
        receive = (
            "import socket, time\ns = socket.create_server(('', 7)); print('up', flush=True)\nc, _ = s.accept()\n"
            "begun = time.monotonic()\nsize = 0\nwhile part := c.recv(65536): size += len(part)\n"
            "print(size, time.monotonic() - begun)"
        )
        sink = boxes.start(python(receive), name="sink", net=slow)
        wait_until(lambda: "up" in sink.logs())
        send = "import socket; socket.create_connection(('sink', 7)).sendall(bytes(400_000))"
        boxes.run(python(send), net=slow, check=True)
        assert sink.wait(20) == 0
        size, seconds = sink.logs().split()[1:]
        assert int(size) == 400_000
        # A megabyte per second, less what may come in one go.
        assert float(seconds) > 0.3

    def test_delay_and_loss_take_netem(self, boxes: NsBox):
        far = boxes.network("far", delay="100ms", rate="80mbit")
        try:
            web = serve(boxes, "web", far)
        except BoxFailed as error:
            assert os.environ.get("NSBOX_VM") != "uml", error
            text = (
                "network 'far': delay and loss take the kernel's sch_netem, which it does not have (modprobe sch_netem)"
            )
            assert str(error) == text
            return
        client = boxes.start(["sleep", "60"], net=far)
        begun = time.monotonic()
        assert ask(client, str(web.ip)) == client.ip
        # There and back for the first packet, and there and back for the answer.
        assert time.monotonic() - begun > 0.35
