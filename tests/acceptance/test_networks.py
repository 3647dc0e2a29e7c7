"""Networks in runs of pytest: the marker's net=NAME, containers from boxes, workers of xdist, what stays."""

from __future__ import annotations

import os
import textwrap

import pytest

from tests.acceptance.test_rootless import as_user

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "bridge")

SUITE = """
    import socket, sys, time
    import pytest

    SERVER = "\\n".join([
        "import socket",
        "server = socket.create_server(('', 7))",
        "print('up', flush=True)",
        "while True:",
        "    client, address = server.accept()",
        "    client.sendall(address[0].encode())",
        "    client.close()",
    ])

    @pytest.fixture(scope="session")
    def web(nsbox_session):
        lan = nsbox_session.network("lan")
        box = nsbox_session.start([sys.executable, "-c", SERVER], name="web", net=lan)
        while "up" not in box.logs() and box.status == "running":
            time.sleep(0.01)
        return box

    def ask(name):
        with socket.create_connection((name, 7), 5) as server:
            return server.recv(100).decode()

    @pytest.mark.sandbox(net="lan")
    @pytest.mark.parametrize("n", range(3))
    def test_in_the_network(web, n):
        assert ask("web").startswith(web.ip.rpartition(".")[0])
        assert ask("web") != web.ip

    @pytest.mark.sandbox(net="lan", hostname="tester")
    def test_a_container_reaches_a_test(web, nsbox, sandbox):
        with socket.create_server(("", 8)):
            code = "import socket; socket.create_connection(('tester', 8), 5)"
            nsbox.run([sys.executable, "-c", code], net="lan", check=True)
        assert nsbox.run(["true"], net=nsbox.network()).returncode == 0
"""


@pytest.mark.parametrize("options", [(), ("--sandbox-all",), ("-n2", "--sandbox-all")], ids=["some", "all", "xdist"])
def test_tests_and_containers_share_a_network(pytester: pytest.Pytester, options: tuple[str, ...]):
    pytester.makepyfile(SUITE)
    before = os.listdir("/sys/class/net")
    pytester.runpytest_subprocess("-q", *options).assert_outcomes(passed=4)
    assert os.listdir("/sys/class/net") == before


def test_an_unknown_network_is_an_error_in_setup(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.sandbox(net="lan")
        def test_one(): ...

        def test_two(): ...
        """
    )
    result = pytester.runpytest_subprocess("--sandbox-all")
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*net='lan': there is no such network (there are: none)*"])


def test_what_is_no_name_is_told_at_collection(pytester: pytest.Pytester):
    pytester.makepyfile("import pytest\n\n@pytest.mark.sandbox(net='a b')\ndef test_one(): ...\n")
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*sandbox marker: net='a b': not a network's name (accepted: *the name of a network*"])


ORDINARY = """
    import socket, sys, time
    import pytest
    from pytest_nsbox import BoxFailed

    SERVER = "\\n".join([
        "import socket",
        "server = socket.create_server(('', 77))",
        "print('up', flush=True)",
        "while True:",
        "    client, address = server.accept()",
        "    client.sendall(address[0].encode())",
        "    client.close()",
    ])

    def ask(host, port=77):
        with socket.create_connection((host, port), 5) as server:
            return server.recv(100).decode()

    @pytest.fixture(scope="session")
    def web(nsbox_session):
        lan = nsbox_session.network("lan", rate="80mbit")
        box = nsbox_session.start([sys.executable, "-c", SERVER], name="web", net=lan, publish={77: 0})
        while "up" not in box.logs() and box.status == "running":
            time.sleep(0.01)
        return box

    @pytest.mark.sandbox(net="lan")
    def test_in_the_network(web):
        assert ask(web.ip).startswith(web.ip.rpartition(".")[0])
        assert ask("web")

    def test_from_outside(web, nsbox):
        assert ask("127.0.0.1", web.ports[77])
        lan = nsbox.network("lan")
        with nsbox.start(["sleep", "60"], name="other", net=lan) as other:
            assert "web" in other.exec(["cat", "/etc/hosts"], check=True).stdout
            lan.cut(web, other)
            lan.mend(web, other)
            other.signal("KILL")
            assert other.wait(5) == -9

    def test_a_way_out(nsbox):
        assert nsbox.run(["true"], net=nsbox.network(internal=False)).returncode == 0

    ASK = "import socket; print(socket.create_connection(('127.0.0.1', 7777), 5).recv(100))"

    @pytest.mark.parametrize("net", [False, "lan"])
    def test_the_network_of_another_box(nsbox, web, net):
        with nsbox.start([sys.executable, "-Sc", SERVER.replace("77", "7777")], net=net, name="first") as first:
            while "up" not in first.logs() and first.status == "running":
                time.sleep(0.01)
            with nsbox.start(["sleep", "60"], net=first) as second:
                assert second.exec([sys.executable, "-Sc", ASK], check=True).stdout == "b'127.0.0.1'\\n"
                shared = {box.exec(["readlink", "/proc/self/ns/net"], check=True).stdout for box in (first, second)}
                assert len(shared) == 1
                first.stop()
                with pytest.raises(BoxFailed, match="the box 'first' is not running: it has no network to share"):
                    nsbox.run(["true"], net=first)
"""


@pytest.mark.needs("ordinary user")
def test_an_ordinary_user_has_networks_and_published_ports(tmpdir_for_all: str):
    before = os.listdir("/sys/class/net")
    done = as_user({"test_networks.py": textwrap.dedent(ORDINARY)}, "-q", tmpdir=tmpdir_for_all)
    assert "5 passed" in done.text, done.text
    assert os.listdir("/sys/class/net") == before
