"""The marker's keys do what they say, seen by tests inside; the host afterwards is as it was."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.comparing import ZOO, Recorded, Runs
from tests.acceptance.zoo.box import ODD, WRITES

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory", "cgroup:cpuset", "time namespace")


@pytest.fixture
def host_socket(tmp_path: Path) -> Iterator[str]:
    """A Unix socket of the host's, outside every shared path, that greets who connects."""
    path = f"/var/tmp/nsbox-test-{os.getpid()}.socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.sendall(b"from the host")
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    os.unlink(path)


@pytest.fixture
def box(runs: Runs, host_socket: str, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """The run of zoo/box.py."""
    shared = runs.pytester.path / "shared"
    shared.mkdir()
    (shared / "given").write_text("given")
    monkeypatch.setenv("SHARED", str(shared))
    monkeypatch.setenv("HOST_SOCKET", host_socket)
    files: dict[str, str | Path] = {f"sources/{name}/here": name for name in ODD}
    files |= {"sources/file": "a file", "given": "given", "directory/inner": "inner", "other": "other"}
    files |= {"test_box.py": ZOO / "box.py", "pytest.ini": f"[pytest]\nsandbox_shared_paths = {shared}\n"}
    return runs.run(runs.write(files, "boxed"), "-rfE")


def test_a_box_is_what_its_marker_says_and_the_host_stays_as_it_was(box: Recorded):
    deaths = [report for report in box.reports() if report["outcome"] == "failed"]
    failed = [f"{report['nodeid']} in {report['when']}:\n{report['longrepr']}" for report in deaths]
    assert not failed, "\n\n".join(failed)
    box.result.assert_outcomes(passed=29)

    suite = box.path
    assert not [path for path in [*WRITES, "/tmp/made-in-a-box", str(suite / "made-in-a-box")] if os.path.exists(path)]
    assert Path("/etc/hostname").exists()
    assert (suite / "given").read_text() == "given"
    assert (suite / "directory/inner").read_text() == "inner"
    assert (suite / "other").stat().st_uid == 0
    assert (suite / "other").stat().st_mode & 0o777 == 0o644
    for name in ODD:
        written = {} if "," in name else {"written first", "written second"}
        assert {path.name for path in (suite / "sources" / name).iterdir()} == {"here", *written}
    assert (suite.parent.parent / "shared" / "made").read_text() == "made"

    artifacts = suite / "sandbox-artifacts"
    found = {path.name: path.read_text() for path in artifacts.rglob("*") if path.is_file()}
    assert found == {"one.txt": "one", "left": "left"}

    base = max(suite.parent.parent.glob("runpytest-*"))
    assert (base / "test_tmp_is_ones_own_and_base_0" / "made").read_text() == "x"
    assert (base / "test_user_by_numbers0" / "file").read_text() == "x"


def test_a_missing_volume_an_unknown_user_and_a_bad_workdir_fail_the_test_with_their_name(runs: Runs):
    suite = {
        "test_wrong.py": """
            import pytest

            @pytest.mark.sandbox(volumes=["/nowhere/at/all:/mnt"])
            def test_volume(): pass

            @pytest.mark.sandbox(user="nobody-of-that-name")
            def test_user(): pass

            @pytest.mark.sandbox(workdir="/no/such/directory")
            def test_workdir(): pass

            def test_fine(): pass
        """
    }
    boxed = runs.run(runs.write(suite, "boxed"))
    boxed.result.assert_outcomes(passed=1, errors=3)
    for name, said in (
        ("volume", "/nowhere/at/all"),
        ("user", "nobody-of-that-name"),
        ("workdir", "/no/such/directory"),
    ):
        report = boxed.of(f"test_{name}", "setup")
        assert said in report["longrepr"]
        # The user's own words, not our frames.
        assert "pytest_nsbox/" not in report["longrepr"], report["longrepr"]
        assert len(report["longrepr"].splitlines()) < 6


def test_pytest_in_a_box_runs_boxes_of_its_own(runs: Runs):
    suite = {
        "test_outer.py": """
            import subprocess, sys

            def test_runs_pytest(tmp_path):
                (tmp_path / "test_inner.py").write_text(
                    "import os, pytest\\n"
                    "@pytest.mark.sandbox(mem='64M')\\n"
                    "def test_limited(): assert os.getpid() < 100\\n"
                    "@pytest.mark.sandbox(mem='64M')\\n"
                    "def test_oom(): x = bytearray(2**27); x[::4096] = b'x' * len(x[::4096])\\n"
                    "@pytest.mark.sandbox(hostname='inner', net=False)\\n"
                    "def test_named(): assert os.uname().nodename == 'inner'; open('/etc/made', 'w').close()\\n"
                )
                command = [sys.executable, "-m", "pytest", "-p", "nsbox", "-q", "--sandbox-all", str(tmp_path)]
                done = subprocess.run(command, capture_output=True, text=True)
                print(done.stdout, done.stderr)
                assert "1 failed, 2 passed" in done.stdout
                assert "OOM-killed: memory limit 64.0 MiB" in done.stdout
        """
    }
    boxed = runs.run(runs.write(suite, "boxed"))
    boxed.result.assert_outcomes(passed=1)


READONLY_USER = """
import os, pytest
@pytest.mark.sandbox(readonly=True, user="nobody")
def test_a(tmp_path):
    assert os.getuid() == 65534
    (tmp_path / "x").write_text("1")
    with pytest.raises(OSError):
        open("/etc/x", "w")
"""


def test_a_user_reaches_the_base_temp_under_a_read_only_root(runs: Runs):
    quick = runs.run(runs.write({"test_a.py": READONLY_USER}, "readonly"))
    quick.result.assert_outcomes(passed=1)
