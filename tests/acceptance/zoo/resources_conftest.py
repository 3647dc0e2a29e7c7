"""Session fixtures that hold what a fork does not carry over, and a plugin with at-fork handlers that start threads."""

import os
import queue
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest

STARTED = []


def _start_thread():
    thread = threading.Thread(target=STARTED.append, args=(os.getpid(),), daemon=True)
    thread.start()
    thread.join()


# As grpc, newer psycopg and profilers do.
os.register_at_fork(before=_start_thread, after_in_parent=_start_thread, after_in_child=_start_thread)

SERVER = """
import socket, ssl, sys, threading
listener = socket.create_server(("127.0.0.1", 0))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.maximum_version = ssl.TLSVersion.TLSv1_2
context.set_ciphers("AECDH-AES128-SHA:@SECLEVEL=0")  # anonymous: no certificate needed
print(listener.getsockname()[1], flush=True)

def serve(connection):
    if connection.recv(1, socket.MSG_PEEK) == b"\\x16":
        connection = context.wrap_socket(connection, server_side=True)
    while data := connection.recv(100):
        connection.sendall(data.upper())

while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


@pytest.fixture(scope="session")
def server():
    """A server process of the host's; every test reaches the same one."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    process.port = int(process.stdout.readline())
    yield process
    assert process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="session")
def tls(server):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES128-SHA:@SECLEVEL=0")
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection(("127.0.0.1", server.port))) as connection:
        yield connection


@pytest.fixture(scope="session")
def connection(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connected:
        yield connected


@pytest.fixture(scope="session")
def depends_on_connection(connection):
    return connection


@pytest.fixture(scope="session")
def worker():
    """A thread that answers through queues."""
    asked, answers = queue.Queue(), queue.Queue()

    def work():
        while (value := asked.get()) is not None:
            answers.put(value * 2)

    thread = threading.Thread(target=work)
    thread.start()

    def ask(value):
        asked.put(value)
        return answers.get(timeout=5)

    yield ask
    asked.put(None)
    thread.join()


@pytest.fixture(scope="session")
def writer(tmp_path_factory):
    """A process of the host's that answers through files of the base temp, some time after it was asked."""
    directory = tmp_path_factory.mktemp("mailbox")
    script = (
        "import os, sys, time\n"
        "while True:\n"
        "    for name in os.listdir('.'):\n"
        "        if name.endswith('.ask'):\n"
        "            os.rename(name, name[:-4] + '.answer')\n"
        "    time.sleep(0.02)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=directory)
    yield directory
    process.kill()
    process.wait()
