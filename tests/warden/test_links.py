"""Links of networks that are cut, slow or lossy: the virtual machine's kernel has netem."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pytest_nsbox import BoxFailed
from pytest_nsbox.network import Network
from pytest_nsbox.nsbox import NsBox
from pytest_nsbox.warden.client import Warden
from tests.warden.servers import ask, python, serve, wait_until

# The warden's connection and the boxes' processes stay for the module.
pytestmark = [pytest.mark.keeps_running, pytest.mark.needs("bridge")]


@pytest.fixture
def boxes(warden: Warden) -> Iterator[NsBox]:
    made = NsBox(warden.connect, "/")
    yield made
    made.close()


@pytest.fixture
def lan(boxes: NsBox) -> Network:
    return boxes.network("lan")


class TestLinks:
    def test_a_cut_link_is_between_two_boxes_alone(self, boxes: NsBox, lan: Network):
        one, two, three = (serve(boxes, name, lan) for name in ("one", "two", "three"))
        lan.cut(one, "two")
        assert "TimeoutError" in ask(one, str(two.ip), 0.2)
        assert "TimeoutError" in ask(two, str(one.ip), 0.2)
        assert ask(one, str(three.ip)) == one.ip
        assert ask(three, str(two.ip)) == three.ip
        lan.mend("two", one)
        assert ask(one, str(two.ip)) == one.ip

    def test_a_disconnected_box_keeps_its_connections(self, boxes: NsBox, lan: Network):
        web = serve(boxes, "web", lan)
        client = boxes.start(["sleep", "60"], net=lan)
        lan.disconnect(web)
        assert "TimeoutError" in ask(client, str(web.ip), 0.3)
        lan.connect(web)
        wait_until(lambda: ask(client, str(web.ip), 1) == client.ip)

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
