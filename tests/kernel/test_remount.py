"""Attributes of mounts without mount_setattr(2), as before Linux 5.12; each test has a mount namespace of its own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_nsbox.kernel import mount, remount
from tests.kernel.test_mount import alone, mount_points, tmpfs_at, write

pytestmark = pytest.mark.needs("root", "overlay", "user namespace")


def test_a_clone_that_has_no_place_yet_gets_its_attributes_and_nobody_elses_change(tmp_path: Path) -> None:
    def play() -> None:
        os.close(tmpfs_at(tmp_path / "a", mount.NOEXEC))
        (tmp_path / "b").mkdir()
        fd = mount.clone_tree(str(tmp_path / "a"))
        before = mount_points()
        remount.set_attributes(fd, mount.RDONLY | mount.NODEV, recursive=False, target="a")
        assert mount_points() == before
        assert not os.get_inheritable(fd)
        mount.attach(fd, str(tmp_path / "b"))
        os.close(fd)
        assert write(tmp_path / "b" / "x") == errno.EROFS
        assert os.statvfs(tmp_path / "b").f_flag & 15 == mount.RDONLY | mount.NODEV | mount.NOEXEC
        assert write(tmp_path / "a" / "x") == 0

    alone(play)


def test_a_clone_of_a_file_gets_them_as_well(tmp_path: Path) -> None:
    def play() -> None:
        (tmp_path / "a").touch()
        fd = mount.clone_tree(str(tmp_path / "a"))
        remount.set_attributes(fd, mount.RDONLY, recursive=False, target="a")
        mount.attach(fd, str(tmp_path / "a"))
        os.close(fd)
        assert write(tmp_path / "a") == errno.EROFS

    alone(play)


@pytest.mark.parametrize("attached", [False, True])
def test_what_is_mounted_below_gets_them_where_that_is_wanted(tmp_path: Path, *, attached: bool) -> None:
    hidden, shown = tmp_path / "a" / "hides" / "hidden", tmp_path / "a" / "with space"

    def play() -> None:
        for place in (tmp_path / "a", hidden.parent, hidden, hidden.parent, shown):
            os.close(tmpfs_at(place))
        (tmp_path / "b").mkdir()
        fd = mount.clone_tree(str(tmp_path / "a"), recursive=True)
        if attached:
            mount.attach(fd, str(tmp_path / "b"))
        remount.set_attributes(fd, mount.RDONLY, recursive=True, target="a")
        if not attached:
            mount.attach(fd, str(tmp_path / "b"))
        os.close(fd)
        for name in ("x", "hides/x", "with space/x"):
            assert write(tmp_path / "b" / name) == errno.EROFS
        assert write(shown / "x") == 0

    alone(play)


def test_a_user_namespace_may_add_attributes_and_keeps_those_that_are_locked(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pytest_nsbox.kernel import mount, remount; fd = mount.clone_tree(sys.argv[1]); "
        "remount.set_attributes(fd, mount.RDONLY, recursive=False, target=''); mount.attach(fd, sys.argv[1]); "
        "print(os.statvfs(sys.argv[1]).f_flag & 15)"
    )

    def play() -> str:
        os.close(tmpfs_at(tmp_path / "a", mount.NODEV | mount.NOSUID))
        command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", code, str(tmp_path / "a")]
        path = os.pathsep.join((str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")))
        return subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
        ).stdout

    assert alone(play) == f"{mount.RDONLY | mount.NODEV | mount.NOSUID}\n"
