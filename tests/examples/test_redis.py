import socket
import time

import pytest


def wait_for(box, text):
    while text not in box.logs():
        assert box.status == "running", box.logs()
        time.sleep(0.01)


@pytest.fixture(scope="session")
def redis(nsbox_session):
    command = ["redis-server", "--save", "", "--protected-mode", "no"]
    with nsbox_session.start(command, rootfs="redis", publish={6379: 0}) as box:
        wait_for(box, "Ready to accept connections")
        yield box


def ask(redis, *words):
    with socket.create_connection(("127.0.0.1", redis.ports[6379])) as client:
        client.sendall(" ".join(words).encode() + b"\r\n")
        return client.recv(4096).decode().strip()


def test_a_client_on_the_host(redis):
    assert ask(redis, "SET", "greeting", "hello") == "+OK"
    assert ask(redis, "GET", "greeting") == "$5\r\nhello"


def test_its_own_client_in_its_box(redis):
    assert redis.exec(["redis-cli", "ping"], check=True).stdout == "PONG\n"


def test_a_server_that_ends(nsbox):
    with nsbox.start(["redis-server"], rootfs="redis", net=False) as box:
        wait_for(box, "Ready to accept connections")
        assert box.stop() == 0
        assert "bye bye" in box.logs()
