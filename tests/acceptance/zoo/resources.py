import os
import socket
import subprocess
import threading
import time

import pytest


def answer(connection, text):
    connection.sendall(text)
    return connection.recv(100)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_tls_connection(tls, number):
    assert answer(tls, b"hello %d" % number) == b"HELLO %d" % number


@pytest.mark.parametrize("number", [1, 2, 3])
def test_connection(connection, number):
    assert answer(connection, b"hello %d" % number) == b"HELLO %d" % number


def test_what_depends_on_a_connection(depends_on_connection, connection):
    assert depends_on_connection is connection
    assert answer(connection, b"x") == b"X"


@pytest.mark.parametrize("number", [1, 2])
def test_server(server, number):
    with socket.create_connection(("127.0.0.1", server.port)) as connected:
        assert answer(connected, b"own") == b"OWN"
    assert server.pid > 0


@pytest.mark.parametrize("number", [1, 2])
def test_thread(worker, number):
    assert worker(number) == number * 2


def wait_for(path):
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [1, 2])
def test_file_of_the_host(writer, number):
    wanted = writer / f"{number}.answer"
    assert not wanted.exists()
    (writer / f"{number}.ask").write_text("")
    wait_for(wanted)


def test_starts_processes_and_threads():
    assert subprocess.run(["sh", "-c", "echo $$"], capture_output=True, check=True).stdout.strip().isdigit()
    seen = []
    thread = threading.Thread(target=seen.append, args=(1,))
    thread.start()
    thread.join()
    assert seen == [1]
    if (pid := os.fork()) == 0:
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
