import time

import pytest


@pytest.fixture(scope="session")
def server(nsbox_session):
    nsbox_session.volume("database")
    command = ["redis-server", "--dir", "/data", "--appendonly", "yes"]
    with nsbox_session.start(command, rootfs="redis", net=False, volumes=["database:/data"], mem="64M") as box:
        while box.exec(["redis-cli", "ping"]).returncode:
            time.sleep(0.01)
        yield box


@pytest.fixture
def database(server):
    def query(*words):
        return server.exec(["redis-cli", *words], check=True).stdout.strip()

    yield query
    query("FLUSHALL")


def test_one_writes(database):
    assert database("INCR", "visits") == "1"


def test_another_finds_it_empty(database):
    assert database("INCR", "visits") == "1"


def test_it_may_use_so_much_memory(database, server):
    assert database("EVAL", "return #string.rep('x', 1000000)", "0") == "1000000"
    assert server.usage()["memory_peak_bytes"] < server.usage()["memory_limit_bytes"]
