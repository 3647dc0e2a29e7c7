"""The fixtures `nsbox` and `nsbox_session`, in runs of pytest: with boxes, without, under xdist."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("root", "overlay", "user namespace")

LIFE = """
    import pytest

    @pytest.mark.sandbox(pids=500)
    def test_runs(nsbox):
        assert nsbox.run(["sh", "-c", "cat; echo out"], input="in ").stdout == "in out\\n"
        with nsbox.start(["sleep", "60"], name="web") as box:
            assert box.exec(["hostname"], check=True).stdout
            assert box.status == "running"
            assert box.inspect()["Limits"] == {}
        assert nsbox.run(["sh", "-c", "exit 3"]).returncode == 3

    @pytest.fixture(scope="session")
    def server(nsbox_session):
        box = nsbox_session.start(["sh", "-c", "echo up; exec sleep 60"], name="server")
        return box

    def test_one(server):
        server.exec(["touch", "/made"], check=True)

    def test_two(server, nsbox):
        assert server.exec(["ls", "/made"]).returncode == 0
        assert nsbox.run(["ls", "/made"]).returncode == 2
        print("PID", server.pid)
"""


@pytest.mark.parametrize("options", [("--sandbox-off",), ("--sandbox-all",)], ids=["unboxed", "boxed"])
def test_containers_from_a_test(pytester: pytest.Pytester, options: tuple[str, ...]):
    pytester.makepyfile(LIFE)
    result = pytester.runpytest_subprocess("-rP", "-v", "--sandbox-set=mem=1G", *options)
    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("*opened a connection*")
    pid = next(line.split()[1] for line in result.outlines if line.startswith("PID "))
    assert not Path(f"/proc/{pid}").exists()


def test_each_worker_of_xdist_has_its_own(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("n", range(4))
        def test_one(nsbox_session, n):
            with nsbox_session.start(["sleep", "60"], name="same") as box:
                assert box.exec(["echo", str(n)]).stdout == f"{n}\\n"
        """
    )
    pytester.runpytest_subprocess("-n2", "--sandbox-all").assert_outcomes(passed=4)


FAILING = """
    import time

    def test_fails(nsbox):
        box = nsbox.start(["sh", "-c", "echo told by the box; sleep 60"], name="left")
        while "told" not in box.logs():
            time.sleep(0.01)
        print("PID", box.pid)
        assert 0

    def test_passes(nsbox):
        box = nsbox.start(["sh", "-c", "echo never shown; sleep 60"], name="left")
        while "never" not in box.logs():
            time.sleep(0.01)
"""


@pytest.mark.parametrize("options", [(), ("--sandbox-all",)], ids=["unboxed", "boxed"])
def test_a_failed_test_shows_the_logs_of_what_it_left(pytester: pytest.Pytester, options: tuple[str, ...]):
    pytester.makepyfile(FAILING)
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*nsbox left (running)*", "told by the box"])
    result.stdout.no_fnmatch_line("*never shown*")
    pid = next(line.split()[1] for line in result.outlines if line.startswith("PID "))
    assert not Path(f"/proc/{pid}").exists()


MISTAKES = """
    def test_key(nsbox):
        nsbox.run(["true"], memory="1G")

    def test_directory(nsbox):
        nsbox.run(["true"], workdir="/nowhere")

    def test_status(nsbox):
        nsbox.run(["false"], check=True)

    def test_image(nsbox):
        nsbox.start(["true"], rootfs="nowhere")

    def test_exited(nsbox):
        box = nsbox.start(["true"])
        box.wait()
        box.exec(["true"])

    def test_network(nsbox):
        nsbox.network("lan", subnet="everywhere")
"""


def test_a_mistake_is_shown_where_it_was_made(pytester: pytest.Pytester):
    pytester.makepyfile(MISTAKES)
    result = pytester.runpytest_subprocess("--sandbox-all")
    result.assert_outcomes(failed=6)
    text = result.stdout.str()
    assert "pytest_nsbox/" not in text
    assert "no image 'nowhere'" in text
    whole = pytester.runpytest_subprocess("--full-trace", "-k", "image")
    assert "pytest_nsbox/" in whole.stdout.str()


def test_a_test_that_dies_takes_its_containers_along(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import os

        def test_dies(nsbox, tmp_path_factory):
            box = nsbox.start(["sleep", "60"])
            (tmp_path_factory.getbasetemp() / "pid").write_text(str(box.pid))
            os._exit(1)

        def test_next(tmp_path_factory):
            import time
            pid = (tmp_path_factory.getbasetemp() / "pid").read_text()
            deadline = time.monotonic() + 20
            while os.path.exists(f"/proc/{pid}"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        """
    )
    result = pytester.runpytest_subprocess("--sandbox-all", "--sandbox-set", "timeout=60s")
    result.assert_outcomes(failed=1, passed=1)


def test_only_a_test_that_names_the_fixture_can_start_containers(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import pytest
        from pytest_nsbox import BoxFailed, child

        def test_asks(request):
            request.getfixturevalue("nsbox").run(["true"])

        def test_talks_to_pytest_itself():
            test = child.current
            test.channel.send("ask", what="usage", attributes={"fixturenames": ["nsbox"], "getparent": None})
            test.channel.receive()
            with pytest.raises(BoxFailed, match="only where it, or a fixture, has nsbox"):
                test.connect()
            with pytest.raises(RuntimeError, match="only where it, or a fixture, has nsbox"):
                test.ask(["add", "/", "/etc", "kept-outside"])
        """
    )
    result = pytester.runpytest_subprocess("--sandbox-all")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*BoxFailed: a test in a box can start containers only where it, or a fixture, has*"])


def test_a_run_without_containers_imports_nothing_of_them(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import sys

        def test_plain():
            assert not {"pytest_nsbox.nsbox", "pytest_nsbox.started", "pytest_nsbox.warden.engine"} & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess("--sandbox-all").assert_outcomes(passed=1)


def test_the_host_is_as_it_was(pytester: pytest.Pytester):
    marker = f"/nsbox-acceptance-{os.getpid()}"
    pytester.makepyfile(f"def test_writes(nsbox): nsbox.run(['touch', {marker!r}], check=True)")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    assert not os.path.exists(marker)
