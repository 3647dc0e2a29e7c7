import errno
import socket
import threading

import pytest


def fetch(address, cached):
    """The code under test: what the server says, or what it said last time."""
    try:
        with socket.create_connection(address, timeout=5) as connection:
            return connection.recv(100)
    except OSError as error:
        print(f"offline: {error.strerror}")
        return cached


@pytest.mark.sandbox(net=False)
def test_without_a_network_the_cache_answers():
    assert fetch(("192.0.2.1", 80), cached=b"yesterday's") == b"yesterday's"


@pytest.mark.sandbox(net=False)
def test_there_is_no_route_at_all():
    with pytest.raises(OSError) as caught:
        socket.create_connection(("192.0.2.1", 80), timeout=5)
    assert caught.value.errno == errno.ENETUNREACH


@pytest.mark.sandbox(net=False)
def test_loopback_is_the_boxs_own():
    def answer():
        with server.accept()[0] as connection:
            connection.sendall(b"today's")

    # Port 80 is free, whatever runs on the machine.
    with socket.create_server(("127.0.0.1", 80)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        assert fetch(("127.0.0.1", 80), cached=b"") == b"today's"
        thread.join()
