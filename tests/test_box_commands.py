"""`nsbox run` and what can be done with its boxes, as it is typed."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_nsbox import cli, keeper
from tests.capabilities import require
from tests.rootfs import rootfs

# The keeper stays for the module.
pytestmark = pytest.mark.keeps_running

NsBox = Callable[..., str]
FOREVER = ("--", "sleep", "60")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Directories of a user of this module's own."""
    require("root", "overlay", "user namespace")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "NSBOX_ROOTFS_CACHE", os.environ.get("NSBOX_ROOTFS_CACHE", f"{Path.home()}/.cache/pytest-nsbox-rootfs")
        )
        for name in ("XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
            (home / name).mkdir()
            patch.setenv(name, str(home / name))
        yield home
        boxes = subprocess.run([sys.executable, "-c", MAIN, "ps", "-aq"], capture_output=True, text=True, check=True)
        for name in boxes.stdout.split():
            cli.main(["rm", "-f", name])
        cli.main(["network", "rm", "mesh"])
        assert cli.main(["gc"]) == 0
        assert not (home / "XDG_RUNTIME_DIR/pytest-nsbox/socket").exists()
        assert (home / "XDG_RUNTIME_DIR/pytest-nsbox/log").read_text() == ""


MAIN = "import sys; from pytest_nsbox.cli import main; sys.exit(main())"


@pytest.fixture
def nsbox(capfd: pytest.CaptureFixture[str]) -> NsBox:
    """Types a command; returns what it printed to stdout, or with `fails` to stderr."""

    def run(*arguments: str, status: int = 0, fails: bool = False) -> str:
        code = cli.main(arguments)
        out, err = capfd.readouterr()
        assert code == status, out + err
        return err if fails else out

    return run


def test_run_shows_both_streams_and_ends_with_the_programs_status(capfd: pytest.CaptureFixture[str]):
    assert cli.main(["run", "--rm", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]) == 3
    assert capfd.readouterr() == ("out\n", "err\n")
    assert cli.main(["run", "--rm", "--", "sh", "-c", "kill -9 $$"]) == 137
    assert cli.main(["run", "--rm", "--", "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"]) == 0
    assert capfd.readouterr().out == "x" * 3_000_000


def test_a_box_from_its_start_to_its_end(nsbox: NsBox):
    assert nsbox("run", "-d", "--name", "web", "-e", "A=1", "-w", "/usr", "-m", "64m", *FOREVER) == "web\n"
    heading, line = nsbox("ps").splitlines()
    assert heading.split() == ["NAME", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS"]
    assert re.match(r"web +box-\d+ +<host> +sleep 60 +\d second\w? ago +Up \d second", line)
    assert nsbox("exec", "web", "sh", "-c", "echo $A$B; pwd; echo err >&2") == "1\n/usr\n"
    assert nsbox("exec", "-e", "B=2", "-w", "/", "-u", "65534", "web", "--", "sh", "-c", "echo $A$B; pwd; id -u") == (
        "12\n/\n65534\n"
    )
    assert nsbox("exec", "web", "false", status=1) == ""
    assert "exec nope: No such file" in nsbox("exec", "web", "nope", status=127, fails=True)
    (shown,) = json.loads(nsbox("inspect", "web"))
    assert (shown["Name"], shown["State"], shown["Limits"]["mem"]) == ("web", "running", "64M")
    assert nsbox("inspect", shown["Id"]) == nsbox("inspect", "web")
    assert nsbox("pause", "web") == "web\n"
    assert "(Paused)" in nsbox("ps")
    assert nsbox("unpause", "web") == "web\n"
    assert re.search(r"web +\d+\.\d +.* / 64\.0 MiB", nsbox("stats", "--no-stream"))
    assert "runs: stop it first, or rm -f" in nsbox("rm", "web", status=1, fails=True)
    assert nsbox("stop", "web") == "web\n"
    assert nsbox("ps", "-q") == ""
    assert re.search(r"web .*Exited \(143\) \d seconds? ago", nsbox("ps", "-a"))
    assert nsbox("rm", "web") == "web\n"
    assert "web" not in nsbox("ps", "-a")


def test_logs_as_they_come(nsbox: NsBox):
    script = "echo one; echo two >&2; read x < /go; echo three; exit 4"
    nsbox("run", "-d", "--name", "talks", "--", "sh", "-c", f"mkfifo /go; {script}")
    following = subprocess.Popen([sys.executable, "-c", MAIN, "logs", "-f", "talks"], stdout=subprocess.PIPE, text=True)
    assert following.stdout is not None
    assert following.stdout.readline() == "one\n"
    nsbox("exec", "talks", "sh", "-c", "until [ -p /go ]; do :; done; echo > /go")
    assert following.communicate(timeout=20)[0] == "three\n"
    assert following.returncode == 0
    assert nsbox("logs", "talks") == "one\nthree\n"
    nsbox("rm", "talks")


def test_signals(nsbox: NsBox):
    nsbox(
        "run",
        "-d",
        "--name",
        "traps",
        "--",
        "sh",
        "-c",
        "trap 'exit 7' HUP; touch /ready; while :; do sleep 0.02; done",
    )
    nsbox("exec", "traps", "sh", "-c", "until [ -e /ready ]; do :; done")
    nsbox("kill", "-s", "HUP", "traps")
    nsbox("logs", "-f", "traps")
    assert "Exited (7)" in nsbox("ps", "-a")
    nsbox("rm", "traps")
    run = subprocess.Popen(
        [
            sys.executable,
            "-c",
            MAIN,
            "run",
            "--rm",
            "--",
            "sh",
            "-c",
            "trap 'exit 9' INT; echo up; while :; do sleep 0.02; done",
        ],
        stdout=subprocess.PIPE,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"up\n"
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=20)
    assert run.returncode == 9


def test_standard_input(nsbox: NsBox):
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "run", "-i", "--rm", "--", "cat"], input=b"data", capture_output=True, check=True
    )
    assert done.stdout == b"data"
    assert nsbox("run", "--rm", "--", "cat") == ""


def test_a_terminal(nsbox: NsBox):
    nsbox("run", "-d", "--name", "shell", *FOREVER)
    for words in (["exec", "-it", "shell", "sh"], ["run", "-it", "--rm", "--", "sh"]):
        pid, fd = pty.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", MAIN, *words])
        os.write(fd, b"tty; stty size; echo $((6 * 7)); exit 5\n")
        said = b""
        while True:
            try:
                said += os.read(fd, 4096)
            except OSError:
                break
        os.close(fd)
        _, status = os.waitpid(pid, 0)
        assert (os.waitstatus_to_exitcode(status), b"/dev/pts/0\r\n" in said, b"42\r\n" in said) == (5, True, True), (
            said
        )
    assert "no terminal" in nsbox("exec", "-t", "shell", "sh", status=125, fails=True)
    nsbox("rm", "-f", "shell")


@pytest.mark.needs("debian archive")
def test_images_and_commit(nsbox: NsBox):
    nsbox("image", "import", str(rootfs("busybox")), "base")
    assert (
        nsbox("run", "--name", "maker", "base", "--", "sh", "-c", "readlink /bin/sh; echo made > /made")
        == "/bin/busybox\n"
    )
    identity = nsbox("commit", "maker", "made:1").strip()
    assert nsbox("image", "inspect", "made:1") == nsbox("inspect", identity)
    assert nsbox("run", "--rm", "made:1", "cat", "/made") == "made\n"
    # Its Cmd is what the box ran.
    assert nsbox("run", "--rm", "made:1") == "/bin/busybox\n"
    nsbox("rm", "maker")
    assert "no image 'nowhere'" in nsbox("run", "nowhere", "--", "true", status=125, fails=True)


def test_volumes_outlive_boxes_and_are_there_for_tests(nsbox: NsBox, pytester: pytest.Pytester):
    assert nsbox("volume", "create", "kept") == "kept\n"
    nsbox("run", "--rm", "-v", "kept:/data", "--", "sh", "-c", "echo x > /data/file; chown 7:7 /data/file")
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.sandbox(volumes=["kept:/data", "own:/own"])
        def test_sees_it(nsbox):
            assert open("/data/file").read() == "x\\n"
            assert os.stat("/data/file").st_uid == 7
            open("/data/more", "w").close()
            assert nsbox.run(["ls", "/v"], volumes=["kept:/v"]).stdout == "file\\nmore\\n"
            with pytest.raises(Exception, match="`nsbox volume rm` removes it"):
                nsbox.volume("kept").remove()
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    assert nsbox("volume", "ls", "-q").endswith("kept\n")
    (shown,) = json.loads(nsbox("volume", "inspect", "kept"))
    assert sorted(os.listdir(shown["Mountpoint"])) == ["file", "more"]
    nsbox("run", "-d", "--name", "user", "-v", "kept:/data", *FOREVER)
    assert "in use by user" in nsbox("volume", "rm", "kept", status=1, fails=True)
    nsbox("rm", "-f", "user")
    assert nsbox("volume", "rm", "kept") == "kept\n"
    assert nsbox("volume", "ls", "-q") == ""


@pytest.mark.needs("bridge")
def test_networks(nsbox: NsBox):
    assert nsbox("network", "create", "--subnet", "10.213.77.0/24", "mesh") == "mesh\n"
    nsbox("run", "-d", "--name", "one", "--net", "mesh", *FOREVER)
    assert "10.213.77." in nsbox("run", "--rm", "--net", "mesh", "--", "getent", "ahostsv4", "one")
    assert re.fullmatch(r"NAME +SUBNETS +BOXES\nmesh +10\.213\.77\.0/24( \S+)? +one\n", nsbox("network", "ls"))
    (shown,) = json.loads(nsbox("network", "inspect", "mesh"))
    assert list(shown["Containers"]) == ["one"]
    assert "in use" in nsbox("network", "rm", "mesh", status=1, fails=True)
    assert "already" in nsbox("network", "create", "mesh", status=1, fails=True)
    nsbox("rm", "-f", "one")
    assert nsbox("network", "ls", "-q") == "mesh\n"
    assert nsbox("network", "rm", "mesh") == "mesh\n"
    for flag, internal in (("--internal", True), ("--internal=true", True), ("--internal=false", False)):
        nsbox("network", "create", flag, "wan")
        assert json.loads(nsbox("network", "inspect", "wan"))[0]["Internal"] is internal
        nsbox("network", "rm", "wan")


def test_a_published_port(nsbox: NsBox):
    serve = (
        "import socket; s = socket.create_server(('', 7799)); print('up', flush=True); s.accept()[0].sendall(b'hello')"
    )
    nsbox("run", "-d", "--name", "pub", "-p", "7799", "--", sys.executable, "-c", serve)
    with subprocess.Popen([sys.executable, "-c", MAIN, "logs", "-f", "pub"], stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == b"up\n"
        found = re.search(r"127\.0\.0\.1:(\d+)->7799", nsbox("ps"))
        assert found is not None
        with socket.create_connection(("127.0.0.1", int(found[1]))) as client:
            assert client.recv(9) == b"hello"
    nsbox("rm", "-f", "pub")


@pytest.mark.parametrize(
    ("words", "text", "status"),
    [
        (["run"], "nothing to run: no command was given", 125),
        (["run", "--", "/nope"], "exec /nope: No such file or directory", 127),
        (["run", "--", "/etc/passwd"], "exec /etc/passwd: Permission denied", 126),
        (["run", "-m", "odd", "--", "true"], "nsbox run: mem='odd': not a size", 125),
        (["run", "--set", "prc=host", "--", "true"], "unknown key 'prc' (did you mean 'proc'?", 125),
        (["run", "--name", "a b", "--", "true"], "name='a b': not a name", 125),
        (["run", "--net", "container:none", "--", "true"], "the box 'none' is not running", 125),
        (["run", "-dt", "--", "true"], "-t with -d", 125),
        (["run", "-t", "--", "true"], "no terminal", 125),
        (["exec", "none", "true"], "there is no box 'none'", 125),
        (["exec", "none"], "no command was given", 125),
        (["logs", "none"], "there is no box 'none'", 1),
        (["stop", "none"], "there is no box 'none'", 1),
        (["kill", "-s", "ODD", "none"], "-s ODD: not a signal", 1),
        (["inspect", "none"], "there is no box 'none', and no image 'none'", 1),
        (["commit", "none"], "there is no box 'none'", 1),
        (["volume", "create", "a/b"], "volume 'a/b': not a name", 1),
        (["run", "--net", "none-such", "--", "true"], "none-such", 125),
        (["network", "create", "--subnet", "odd", "n"], "nsbox.network: subnet=['odd']: not a network", 1),
        (["network", "rm", "none"], "there is no network 'none'", 1),
        (["network", "inspect", "none"], "there is no network 'none'", 1),
        (["volume", "rm", "none"], "there is no volume 'none'", 1),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(nsbox: NsBox, words: list[str], text: str, status: int):
    said = nsbox(*words, status=status, fails=True)
    assert said.startswith("nsbox: ")
    assert text in said
    assert said.count("\n") == 1


def test_a_killed_keeper_leaves_nothing_and_commands_at_once_start_one(nsbox: NsBox, home: Path):
    nsbox("run", "-d", "--name", "lost", *FOREVER)
    (shown,) = json.loads(nsbox("inspect", "lost"))
    (pid,) = (int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_keeper(path, home))
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{shown['Pid']}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert nsbox("ps", "-a").count("\n") == 1
    with ThreadPoolExecutor(4) as pool:
        lines = [keeper.Line() for _ in range(4)]
        for sock in pool.map(keeper.Line.connect, lines):
            sock.close()
    assert len([path for path in Path("/proc").glob("[0-9]*") if _is_keeper(path, home)]) == 1
    for line in lines:
        line.close()


def _is_keeper(process: Path, home: Path) -> bool:
    try:
        command = (process / "cmdline").read_bytes()
    except OSError:
        return False
    return b"pytest_nsbox.keeper" in command and str(home).encode() in command
