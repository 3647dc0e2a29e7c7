"""What an ordinary user's boxes do, seen from inside; USER_ID and GROUP_ID are what they are outside."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

UID, GID = int(os.environ["USER_ID"]), int(os.environ["GROUP_ID"])
sandbox = pytest.mark.sandbox


def status(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return line.partition(":")[2].split()
    raise KeyError(field)


def test_it_is_who_it_is_outside_and_has_no_capabilities():
    assert (os.getuid(), os.geteuid(), os.getgid()) == (UID, UID, GID)
    assert status("CapEff") == ["0000000000000000"]
    assert os.getpid() == 2
    assert Path(__file__).stat().st_uid == UID


def test_it_may_not_do_what_it_may_not_outside():
    for path in ("/made", "/etc/made", "/usr/made", "/root/made", "/etc/passwd"):
        with pytest.raises(PermissionError):
            open(path, "w")
    os.chmod(__file__, 0)
    with pytest.raises(PermissionError):
        open(__file__)


def test_its_process_is_like_any_other():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert threading.main_thread().native_id == os.getpid() == threading.get_native_id()
    assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True).stdout == "1\n"
    assert os.WEXITSTATUS(os.system("exit 3")) == 3


def test_it_writes_and(tmp_path):
    (tmp_path / "kept").write_text("kept")
    for path in (Path(__file__).parent / "made", Path("/tmp/nsbox-rootless"), Path("/var/tmp/nsbox-rootless")):
        path.write_text("made")
    Path("given").unlink()
    os.mkdir("directory")
    os.rename("directory", "renamed")


def test_what_it_wrote_is_gone(sandbox):
    assert not (Path(__file__).parent / "made").exists()
    assert not os.path.exists("/tmp/nsbox-rootless")
    assert Path("given").read_text() == "given"
    assert sandbox.changes() == []
    Path("given").write_text("changed")
    assert [tuple(change) for change in sandbox.changes()] == [("C", os.path.abspath("given"))]
    assert "wall_s" in sandbox.usage()


@sandbox(net=False, hostname="other", env={"NAME": "value"}, ulimits={"nofile": 64}, workdir="/")
def test_it_has_namespaces_of_its_own():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
    assert os.listdir("/sys/class/net") == ["lo"]
    assert (socket.gethostname(), os.environ["NAME"], os.getcwd()) == ("other", "value", "/")


@sandbox(volumes=["./sources:/opt/ro:ro", "./shared:/opt/rw", "named:/opt/named"], tmpfs=["/srv:1M"])
def test_volumes_and_tmpfs_are_what_they_say():
    with pytest.raises(OSError) as caught:
        Path("/opt/ro/made").touch()
    assert caught.value.errno == errno.EROFS
    Path("/opt/rw/made").write_text("made")
    Path("/opt/named/made").write_text("made")
    with pytest.raises(OSError) as caught:
        Path("/srv/large").write_bytes(bytes(1 << 21))
    assert caught.value.errno == errno.ENOSPC


@sandbox(volumes=["named:/opt/named"])
def test_a_named_volume_lives_on():
    assert Path("/opt/named/made").read_text() == "made"


@sandbox(disk="1M")
def test_the_disk_is_limited():
    with pytest.raises(OSError) as caught:
        Path("large").write_bytes(bytes(1 << 21))
    assert caught.value.errno == errno.ENOSPC


@sandbox(readonly=True)
def test_the_root_is_read_only():
    with pytest.raises(OSError) as caught:
        Path("made").touch()
    assert caught.value.errno == errno.EROFS


@sandbox(user="root")
def test_it_can_be_root_of_its_box():
    assert (os.getuid(), os.getgid()) == (0, 0)
    assert Path(__file__).stat().st_uid == 0
    os.mkdir("/etc/made")
    subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], check=True)


@sandbox(user="nobody")
def test_it_can_be_another_user(tmp_path):
    (tmp_path / "file").touch()
    assert os.getuid() == (tmp_path / "file").stat().st_uid == 65534


@sandbox(timeout=float(os.environ["PATIENCE"]), artifacts=["left"])
def test_dies_by_time():
    subprocess.Popen(["sleep", "1000"])
    Path("left").write_text("left")
    print("so far")
    time.sleep(30)


def test_dies_by_a_signal():
    os.kill(os.getpid(), signal.SIGSEGV)


def test_dies_by_exit():
    os._exit(3)


@sandbox(mem="64M")
def test_limits_need_groups():
    pass


@sandbox(privileged=True)
def test_has_nothing_to_give():
    pass


def test_holds_boxes_of_its_own():
    inner = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--sandbox-all", "--basetemp=temporary", "inner"]
    done = subprocess.run(inner, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert not os.path.exists("inner/made")


def test_starts_a_container(nsbox):
    result = nsbox.run(["sh", "-c", "id -u; echo made >/tmp/in-a-container"])
    assert (result.returncode, result.stdout) == (0, f"{os.getuid()}\n")
    assert nsbox.run(["sh", "-c", "exit 3"]).returncode == 3
    assert not os.path.exists("/tmp/in-a-container")
