"""Networks in runs of pytest: the marker's net=NAME, containers from boxes, workers of xdist, what stays."""

from __future__ import annotations

import os

import pytest

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
