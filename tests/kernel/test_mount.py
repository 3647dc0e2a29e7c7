"""The doors to mounts, on the real kernel; each test has a mount namespace of its own."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_nsbox.kernel import mount, namespaces, process
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.policy.hostmounts import parse_mountinfo
from tests.warden.boxes import in_a_process

pytestmark = pytest.mark.needs("root", "overlay", "user namespace")


def alone(function: Callable[[], Any]) -> Any:
    def play() -> Any:
        namespaces.unshare(namespaces.NEWNS)
        mount.make_private("/")
        return function()

    return in_a_process(play)


def tmpfs_at(place: Path, attributes: int = 0, size: str = "1m") -> int:
    place.mkdir(exist_ok=True)
    fd = mount.new_mount("tmpfs", (("size", size), ("mode", "700")), attributes, str(place))
    mount.attach(fd, str(place))
    return fd


def mount_points() -> list[str]:
    return [found.target for found in parse_mountinfo(mount.read_mounts())]


def write(path: Path) -> int:
    try:
        path.write_text("x")
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_new_mount_has_its_options_and_attributes(tmp_path: Path) -> None:
    def play() -> None:
        os.close(tmpfs_at(tmp_path / "t", mount.NODEV))
        at = os.stat(tmp_path / "t")
        assert stat.S_IMODE(at.st_mode) == 0o700
        os.mknod(tmp_path / "t" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        assert write(tmp_path / "t" / "null") == errno.EACCES
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "t" / "big").write_bytes(bytes(2 << 20))

    alone(play)


def test_a_mount_that_was_never_attached_leaves_with_its_descriptor(tmp_path: Path) -> None:
    def play() -> None:
        before = mount_points()
        os.close(mount.new_mount("tmpfs"))
        assert mount_points() == before

    alone(play)


def test_the_kernels_own_words_come_with_a_failed_mount() -> None:
    def play() -> str:
        with pytest.raises(KernelError) as told:
            mount.new_mount("tmpfs", (("size", "many"),), target="/x")
        return str(told.value)

    assert alone(play) == "mount tmpfs /x (tmpfs: Bad value for 'size'): Invalid argument"


def test_an_unknown_file_system_is_named() -> None:
    with pytest.raises(KernelError, match=r"^mount nofs /x: No such device$"):
        mount.new_mount("nofs", target="/x")


def test_a_clone_is_of_one_mount_or_of_all_below(tmp_path: Path) -> None:
    def play() -> None:
        os.close(tmpfs_at(tmp_path / "a"))
        os.close(tmpfs_at(tmp_path / "a" / "b"))
        (tmp_path / "a" / "b" / "file").touch()
        for name, recursive, found in (("one", False, []), ("all", True, ["file"])):
            (tmp_path / name).mkdir()
            fd = mount.clone_tree(str(tmp_path / "a"), recursive=recursive)
            mount.attach(fd, str(tmp_path / name))
            os.close(fd)
            assert os.listdir(tmp_path / name / "b") == found

    alone(play)


def test_readonly_does_what_it_says_and_only_to_that_mount(tmp_path: Path) -> None:
    def play() -> None:
        os.close(tmpfs_at(tmp_path / "a"))
        (tmp_path / "b").mkdir()
        fd = mount.clone_tree(str(tmp_path / "a"))
        mount.set_attributes(fd, mount.RDONLY)
        mount.attach(fd, str(tmp_path / "b"))
        assert write(tmp_path / "b" / "x") == errno.EROFS
        assert write(tmp_path / "a" / "x") == 0
        mount.set_attributes(fd, remove=mount.RDONLY)
        assert write(tmp_path / "b" / "x") == 0
        os.close(fd)

    alone(play)


@pytest.mark.needs("shifted tmpfs")
def test_ids_are_shown_through_a_map_and_stored_as_they_were(tmp_path: Path) -> None:
    def play() -> None:
        os.close(tmpfs_at(tmp_path / "a"))
        (tmp_path / "a" / "file").touch()
        (tmp_path / "b").mkdir()
        reader, writer = os.pipe()
        pid, pidfd = process.clone3(namespaces.NEWUSER)
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        namespaces.write_maps(pid, "0 1000 1", "0 1001 1")
        user = namespaces.open_namespace(pid, "user")
        fd = mount.clone_tree(str(tmp_path / "a"))
        mount.set_attributes(fd, idmap=user)
        mount.attach(fd, str(tmp_path / "b"))
        shown = os.stat(tmp_path / "b" / "file")
        assert (shown.st_uid, shown.st_gid) == (1000, 1001)
        everything = process.Capabilities()
        process.set_fs_ids(1000, 1001)
        everything.restore()
        (tmp_path / "b" / "made").touch()
        process.set_fs_ids(0, 0)
        assert os.stat(tmp_path / "a" / "made").st_uid == 0
        with pytest.raises(KernelError, match=r"^mount_setattr idmap .*: Invalid argument$"):
            mount.set_attributes(mount.clone_tree("/proc"), idmap=user)
        os.close(writer)
        process.kill(pidfd)
        os.waitpid(pid, 0)

    alone(play)


def test_a_path_is_looked_up_within_a_root(tmp_path: Path) -> None:
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "etc" / "passwd").write_text("inside")
    (tmp_path / "root" / "absolute").symlink_to("/etc/passwd")
    (tmp_path / "root" / "up").symlink_to("../../../../../../etc/passwd")
    root = os.open(tmp_path / "root", os.O_PATH)
    try:
        for path in ("/absolute", "/up", "/../../etc/passwd", "etc/passwd"):
            fd = mount.open_in(root, path, os.O_RDONLY)
            assert os.read(fd, 100) == b"inside"
            os.close(fd)
        with pytest.raises(KernelError, match=r"^openat2 /none: No such file or directory$"):
            mount.open_in(root, "/none")
    finally:
        os.close(root)


def test_detached_mounts_are_gone_with_all_below(tmp_path: Path) -> None:
    def play() -> None:
        os.close(tmpfs_at(tmp_path / "a"))
        os.close(tmpfs_at(tmp_path / "a" / "b"))
        mount.detach(str(tmp_path / "a"))
        assert [point for point in mount_points() if str(tmp_path) in point] == []
        with pytest.raises(KernelError, match=r"^umount2 .*/a: Invalid argument$"):
            mount.detach(str(tmp_path / "a"))

    alone(play)


def test_an_unbindable_mount_is_left_out_of_recursive_clones(tmp_path: Path) -> None:
    def play() -> None:
        os.close(tmpfs_at(tmp_path / "a"))
        os.close(tmpfs_at(tmp_path / "a" / "b"))
        (tmp_path / "a" / "b" / "file").touch()
        mount.make_unbindable(str(tmp_path / "a" / "b"))
        (tmp_path / "c").mkdir()
        fd = mount.clone_tree(str(tmp_path / "a"), recursive=True)
        mount.attach(fd, str(tmp_path / "c"))
        assert os.listdir(tmp_path / "c" / "b") == []
        os.close(fd)

    alone(play)


def test_the_new_root_is_all_that_is_left_after_a_pivot(tmp_path: Path) -> None:
    def play() -> None:
        fd = tmpfs_at(tmp_path / "root")
        (tmp_path / "root" / "here").touch()
        os.fchdir(fd)
        mount.pivot_here()
        os.chdir("/")
        assert os.listdir("/") == ["here"]
        assert os.listdir("/..") == ["here"]

    alone(play)


def test_a_covered_root_shows_the_same_from_a_mount_that_can_be_put_aside(tmp_path: Path) -> None:
    def play() -> None:
        before = parse_mountinfo(mount.read_mounts())
        mount.cover_root()
        after = parse_mountinfo(mount.read_mounts())
        assert sorted(found.target for found in after) == sorted(found.target for found in before)
        assert {found.number for found in after}.isdisjoint(found.number for found in before)
        assert os.getcwd() == "/"
        os.close(tmpfs_at(tmp_path / "t"))
        os.chdir(tmp_path / "t")
        mount.pivot_here()

    alone(play)


def test_an_overlay_shows_what_changed_below_it_once_lookups_are_forgotten(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "place"):
        (tmp_path / name).mkdir()
    lower = tmp_path / "lower"
    (lower / "replaced").write_text("old")

    def play() -> None:
        options = tuple((f"{name}dir", str(tmp_path / name)) for name in ("lower", "upper", "work"))
        fd = mount.new_mount("overlay", options)
        mount.attach(fd, str(tmp_path / "place"))

        def look() -> tuple[str, bool]:
            return (tmp_path / "place" / "replaced").read_text(), (tmp_path / "place" / "late").exists()

        assert look() == ("old", False)
        (lower / "late").touch()
        (lower / "new").write_text("new")
        (lower / "new").rename(lower / "replaced")
        assert look() == ("old", False), "this kernel needs no forget_lookups"
        mount.forget_lookups(fd)
        assert look() == ("new", True)
        os.close(fd)

    alone(play)
