"""A suite in boxes whose root is an image, run by tests/acceptance/test_images.py."""

import os
import socket
import subprocess
import sys

import pytest

IMAGE = os.environ["IMAGE"]
pytestmark = pytest.mark.sandbox(rootfs=IMAGE)


def test_the_root_is_the_images():
    assert open("/etc/marker").read() == "upper"
    assert not os.path.exists("/etc/gone")
    assert os.listdir("/opaque") == ["new"]
    assert not os.path.exists("/usr/bin/env")
    assert not os.path.exists("/run/systemd")


def test_the_interpreter_and_the_tests_are_still_there(tmp_path, request):
    assert os.path.exists(sys.executable)
    assert os.path.exists(request.path)
    # Neither was loaded before; the second needs libraries of the host's.
    import sqlite3
    import xml.dom.minidom

    assert sqlite3.connect(":memory:").execute("select 1").fetchone() == (1,)
    assert xml.dom.minidom.parseString("<a/>")
    (tmp_path / "kept").write_text("x")
    subprocess.run([sys.executable, "-c", "print()"], check=True)


def test_the_config_applies():
    assert os.environ["FROM_IMAGE"] == "1"
    assert os.environ["PATH"] == "/image/bin"
    assert os.getcwd() == "/not/there/yet"
    assert (os.getuid(), os.getgid()) == (77, 88)


@pytest.mark.sandbox(env={"FROM_IMAGE": "2"}, workdir="/etc", user="0", hostname="boxed", net=False)
def test_the_marker_wins():
    assert os.environ["FROM_IMAGE"] == "2"
    assert os.getcwd() == "/etc"
    assert os.getuid() == 0
    assert open("/etc/hostname").read() == "boxed\n"
    assert "127.0.0.1\tboxed\n" in open("/etc/hosts").read()
    assert socket.gethostname() == "boxed"
    assert open("/etc/resolv.conf").read() == ""


@pytest.mark.sandbox(user="0")
def test_changes_are_told_and_thrown_away(sandbox):
    open("/etc/hosts", "a").write("127.9.9.9 mine\n")
    os.remove("/etc/marker")
    os.rename("/opaque", "/renamed")
    open("/etc/added", "w").close()
    told = [(change.kind, change.path) for change in sandbox.changes()]
    assert ("D", "/etc/marker") in told
    assert ("A", "/etc/added") in told
    assert not [path for _, path in told if path in ("/etc/hosts", "/etc", "/tmp", "/proc", "/not")]


@pytest.mark.sandbox(user="0")
def test_nothing_of_it_is_there_afterwards():
    assert open("/etc/marker").read() == "upper"
    assert "mine" not in open("/etc/hosts").read()
    assert os.listdir("/opaque") == ["new"]
    assert not os.path.exists("/etc/added")


@pytest.mark.sandbox(user="0")
def test_what_is_written_to_the_rootdir_is_thrown_away(request):
    path = request.config.rootpath / "stray"
    assert not path.exists()
    path.write_text("x")


@pytest.mark.sandbox(user="0", readonly=True)
def test_a_read_only_root():
    with pytest.raises(OSError, match="Read-only"):
        open("/etc/x", "w")


@pytest.mark.sandbox(user="0", privileged=True)
def test_a_privileged_one():
    assert os.stat("/etc").st_uid == 0
    assert open("/etc/marker").read() == "upper"


@pytest.mark.sandbox(rootfs=None)
def test_the_hosts_root_beside_it():
    assert not os.path.exists("/etc/marker")
    assert "FROM_IMAGE" not in os.environ
