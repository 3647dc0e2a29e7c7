"""Containers that an ordinary user's tests start."""

from __future__ import annotations

import os
import time

import pytest

from pytest_nsbox import BoxFailed

UID = int(os.environ["USER_ID"])


def life(nsbox):
    assert nsbox.run(["sh", "-c", "cat; id -u; exit 3"], input="in ").stdout == f"in {UID}\n"
    assert nsbox.run(["sh", "-c", "exit 3"]).returncode == 3
    with nsbox.start(["sleep", "60"], name="web", net=False) as box:
        assert box.exec(["sh", "-c", "id -u; touch /var/tmp/made"], check=True).stdout == f"{UID}\n"
        assert ("A", "/var/tmp/made") in box.changes()
        with pytest.raises(BoxFailed, match="put together from pieces: start it with rootfs"):
            box.commit("host", pause=False)
        with pytest.raises(BoxFailed, match="this box has no user but"):
            box.exec(["true"], user="nobody")
        assert box.status == "running"
    assert box.returncode == -15
    assert nsbox.run(["id", "-u"], user="0").stdout == "0\n"
    volume = nsbox.volume("data")
    nsbox.run(["sh", "-c", "echo kept > /var/tmp/data/file"], volumes=[f"{volume}:/var/tmp/data"], check=True)
    assert nsbox.run(["cat", "/var/tmp/data/file"], volumes=["data:/var/tmp/data:ro"]).stdout == "kept\n"


def test_in_no_box(nsbox):
    life(nsbox)


@pytest.mark.sandbox
def test_in_a_box(nsbox):
    life(nsbox)


def test_an_image_and_what_is_committed_on_it(nsbox):
    nsbox.image("/mnt/nsbox-rootless/root", "base")
    script = "rm /etc/group; echo made > /new; rm -r /root; mkdir /root; exec sleep 60"
    with nsbox.start(["sh", "-c", script], rootfs="base", volumes=["taken:/etc"]) as box:
        while box.exec(["test", "-d", "/root", "-a", "-e", "/new"]).returncode:
            time.sleep(0.01)
        if not os.access("/sys/fs/cgroup/freezer", os.W_OK):
            with pytest.raises(BoxFailed, match="pause: the box's processes cannot be frozen: .*mkdir /sys/fs/cgroup/"):
                box.commit("two")
        assert len(box.commit("two", pause=False).layers) == 2
    done = nsbox.run(["sh", "-c", "id -u; cat /new; ls /etc"], rootfs="two", check=True)
    assert done.stdout.split() == [str(UID), "made", "group", "hostname", "hosts", "passwd", "resolv.conf"]
    assert nsbox.run(["ls", "/etc"], rootfs="base", volumes=["taken:/etc"]).stdout.split()[-2:] == ["passwd", "resolv.conf"]


@pytest.mark.sandbox(rootfs="/mnt/nsbox-rootless/root")
def test_a_test_in_an_image():
    assert os.readlink("/bin/sh") == "/bin/busybox"
    assert os.getuid() == UID
    os.unlink("/bin/sh")
