import sys
import time

import pytest

NODE = """
import socket
node = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
node.bind(("", 9000))
print("ready", flush=True)
while True:
    _, client = node.recvfrom(100)
    node.sendto(b"ok", client)
"""

WRITE = """
import socket
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(0.5)
for name in ("one", "two", "three"):
    client.sendto(b"value", (name, 9000))
answers = 0
try:
    while answers < 3:
        client.recv(100)
        answers += 1
except TimeoutError:
    pass
print("written" if answers >= 2 else "refused", "with", answers, "of 3")
"""


@pytest.fixture
def cluster(nsbox):
    network = nsbox.network("cluster")
    nodes = [nsbox.start([sys.executable, "-c", NODE], name=name, net=network) for name in ("one", "two", "three")]
    for node in nodes:
        while "ready" not in node.logs():
            time.sleep(0.01)
    return network, nodes


def write(node):
    return node.exec([sys.executable, "-c", WRITE], check=True).stdout.strip()


def test_all_nodes_answer(cluster):
    _, nodes = cluster
    assert write(nodes[0]) == "written with 3 of 3"


def test_a_cut_link_leaves_a_majority(cluster):
    network, (one, two, three) = cluster
    network.cut(one, two)
    assert write(one) == "written with 2 of 3"
    assert write(two) == "written with 2 of 3"
    assert write(three) == "written with 3 of 3"


def test_a_node_without_its_cable_refuses(cluster):
    network, (one, two, three) = cluster
    network.disconnect(one)
    assert write(one) == "refused with 1 of 3"
    assert write(two) == "written with 2 of 3"
    network.connect(one)
    assert write(one) == "written with 3 of 3"
