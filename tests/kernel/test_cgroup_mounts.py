"""Which hierarchies are found and chosen, from the texts of /proc and on made-up cgroup file systems."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pytest_nsbox.kernel import cgroup, cgroup_tree
from pytest_nsbox.kernel.cgroup import Mount
from pytest_nsbox.kernel.cgroup_delegation import why_absent_in
from pytest_nsbox.policy.errors import BoxFailed
from tests.kernel.cgroups import limit

V1_SPLIT = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
"""
V1_OWN = "4:memory:/user/1\n2:cpu,cpuacct:/\n1:name=systemd:/init.scope\n0::/\n"


def found(mountinfo: str, own: str) -> dict[str, Mount]:
    return {mount.point: mount for mount in cgroup.parse_mounts(mountinfo, own)}


def test_each_hierarchy_is_found_with_its_controllers_and_the_own_group():
    mounts = found(V1_SPLIT, V1_OWN)
    assert mounts["/sys/fs/cgroup/cpu,cpuacct"].controllers == {"cpu", "cpuacct"}
    assert mounts["/sys/fs/cgroup/memory"].own_path() == "/sys/fs/cgroup/memory/user/1"
    assert mounts["/sys/fs/cgroup/cpu,cpuacct"].own_path() == "/sys/fs/cgroup/cpu,cpuacct"
    assert mounts["/sys/fs/cgroup/unified"].version == 2
    assert mounts["/sys/fs/cgroup/systemd"].controllers == {"name=systemd"}
    assert len(mounts) == 4


def test_a_mount_of_a_part_of_the_hierarchy_is_taken_into_account():
    line = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    (mount,) = cgroup.parse_mounts(line, "4:memory:/docker/abc/inner\n")
    assert mount.own_path() == "/sys/fs/cgroup/memory/inner"
    (mount,) = cgroup.parse_mounts(line, "4:memory:/docker/abcdef\n")
    assert mount.own_path() is None


def test_a_group_outside_the_cgroup_namespace_has_no_path():
    line = "35 31 0:32 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    (mount,) = cgroup.parse_mounts(line, "0::/../other\n")
    assert mount.own_path() is None


def test_mount_points_with_spaces_and_other_signs_are_read():
    line = "35 31 0:32 / /mnt/a\\040b\\134c\u00e9,d rw - cgroup2 cgroup2 rw\n"
    (mount,) = cgroup.parse_mounts(line, "0::/\n")
    assert mount.point == "/mnt/a b\\c\u00e9,d"


def test_a_mount_that_another_one_hides_is_left_out():
    lines = "32 31 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n33 32 0:30 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    assert cgroup.parse_mounts(lines, "0::/\n") == []


class MadeUpFiles(cgroup_tree.Files):
    """A directory tree that behaves like a cgroup file system: groups are made and removed with their files."""

    def __init__(self, *names: str) -> None:
        self.names = ("cgroup.procs", "tasks", *names)
        self.marks: set[tuple[str, str]] = set()
        self.mkdir = self._mkdir  # type: ignore[assignment]
        self.rmdir = self._rmdir  # type: ignore[assignment]
        self.setxattr = self._setxattr  # type: ignore[assignment]
        self.getxattr = self._getxattr  # type: ignore[assignment]

    def _mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)
        for name in self.names:
            Path(path, name).touch()

    def _rmdir(self, path: str) -> None:
        if any(os.path.isdir(f"{path}/{name}") for name in os.listdir(path)):
            raise OSError(errno.ENOTEMPTY, "not empty")
        for name in os.listdir(path):
            os.unlink(f"{path}/{name}")
        os.rmdir(path)

    def _setxattr(self, path: str, name: str, value: bytes) -> None:
        self.marks.add((path, name))

    def _getxattr(self, path: str, name: str) -> bytes:
        if (path, name) in self.marks:
            return b"1"
        raise OSError(errno.ENODATA, "no data")


def mounted(root: Path, version: int, name: str, *controllers: str, own: str = "/") -> Mount:
    point = root / name
    point.mkdir(parents=True)
    if version == 2:
        (point / "cgroup.controllers").write_text(" ".join(controllers))
        (point / "cgroup.subtree_control").write_text("")
    return Mount(version, str(point), "/", own, frozenset(controllers if version == 1 else ()))


def test_controllers_that_are_mounted_together_share_one_group(tmp_path: Path):
    mounts = [mounted(tmp_path, 1, "cpu,cpuacct", "cpu", "cpuacct"), mounted(tmp_path, 1, "memory", "memory")]
    files = MadeUpFiles("cpu.shares", "cpuacct.usage", "cpu.stat", "memory.limit_in_bytes")
    session = cgroup.open_session("/nsbox", "unit", frozenset({"cpu"}), files, mounts)
    node = session.make("box", [limit("cpu", "cpu.shares", "7")], None)
    assert [view for view, _ in node.views] == ["cpu,cpuacct", "memory"]
    assert len(node.attach) == 2
    assert Path(node.views[0][1], "cpu.shares").read_text() == "7"
    assert {"cpu.stat", "cpuacct.usage"} <= node.read().keys()
    node.remove()
    session.close()
    assert list(tmp_path.rglob("nsbox*")) == []


def test_without_a_parent_the_session_lies_in_the_own_group_of_each_hierarchy(tmp_path: Path):
    mounts = [
        mounted(tmp_path, 1, "memory", "memory", own="/user/1"),
        mounted(tmp_path, 1, "pids", "pids", own="/other"),
    ]
    for path in ("memory/user/1", "pids/other"):
        (tmp_path / path).mkdir(parents=True)
    session = cgroup.open_session(None, "unit", files=MadeUpFiles(), mounts=mounts)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("nsbox-unit")) == [
        "memory/user/1/nsbox-unit",
        "pids/other/nsbox-unit",
    ]
    session.close()
    assert (tmp_path / "memory/user/1").is_dir()
    assert list(tmp_path.rglob("nsbox*")) == []


def test_a_hierarchy_that_nothing_needs_is_joined_when_a_limit_does(tmp_path: Path):
    mounts = [mounted(tmp_path, 1, "memory", "memory"), mounted(tmp_path, 1, "cpu", "cpu")]
    session = cgroup.open_session("/nsbox", "unit", files=MadeUpFiles("cpu.shares"), mounts=mounts)
    plain = session.make("plain", (), None)
    assert [view for view, _ in plain.views] == ["memory"]
    limited = session.make("limited", [limit("cpu", "cpu.shares", "7")], None)
    assert [view for view, _ in limited.views] == ["memory", "cpu"]
    plain.remove()
    limited.remove()
    session.close()


@pytest.mark.parametrize(
    ("v2", "v1", "version"),
    [
        (("cpu", "memory", "pids"), (), 2),
        ((), ("memory",), 1),
        (("hugetlb",), ("memory", "pids"), 1),
        (("memory", "pids"), ("cpuset",), 2),
    ],
)
def test_a_hybrid_machine_gives_the_version_that_has_memory_and_pids(tmp_path: Path, v2, v1, version):
    mounts = [mounted(tmp_path, 2, "unified", *v2)] + [mounted(tmp_path, 1, name, name) for name in v1]
    files = MadeUpFiles("cgroup.subtree_control")
    session = cgroup.open_session("/nsbox", "unit", files=files, mounts=mounts)
    assert session.version == version
    session.close()


def test_boxes_on_v2_show_nothing_of_a_hierarchy_of_v1_beside_it(tmp_path: Path):
    mounts = [mounted(tmp_path, 2, "unified", "memory", "pids"), mounted(tmp_path, 1, "cpu", "cpu")]
    files = MadeUpFiles("cgroup.subtree_control", "tasks")
    session = cgroup.open_session("/nsbox", "unit", files=files, mounts=mounts)
    session.open_screens()
    # Its root may not be the host's all the same.
    assert len(session.screens) == 1
    assert session.screened == []
    session.close()


@pytest.mark.parametrize(
    ("row", "unified", "told"),
    [
        (None, False, "the kernel is built without it"),
        ("cpu 0 1 0", True, "the controller is disabled at boot; boot the kernel with cgroup_enable=cpu"),
        (
            "cpu 0 1 1",
            True,
            "cpu is not in cgroup.controllers: not passed on to this group, or not in the kernel;",
        ),
        ("cpu 3 1 1", True, "boxes use cgroup v2 here, and cpu is in a hierarchy of cgroup v1; unmount that, or boot"),
        ("cpu 0 1 1", False, "boxes use cgroup v1 here, and no mounted hierarchy has it; mkdir -p /sys/fs/cgroup/cpu"),
    ],
)
def test_where_an_absent_controller_is_and_how_it_comes_is_told(row, unified, told):
    assert why_absent_in(row and row.split(), "cpu", unified=unified).startswith(told)


def test_without_any_cgroup_mount_boxes_without_limits_can_be_made():
    session = cgroup.open_session("/nsbox", "unit", mounts=[])
    assert session.controllers == frozenset()
    node = session.make("box", (), 1000)
    assert (node.attach, node.views, node.read(), node.pids(), node.kill()) == ((), (), {}, [], False)
    assert node.open_directory() is None
    node.remove()
    with pytest.raises(BoxFailed) as caught:
        session.make("box", [limit("memory", "memory.max", "1")], None)
    assert str(caught.value) == (
        "the cgroup controller memory cannot be used: "
        "no cgroup file system is mounted; mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    )
    session.close()


def test_an_own_group_outside_every_mount_says_what_to_do():
    mounts = [Mount(2, "/sys/fs/cgroup", "/", "/../other", frozenset())]
    session = cgroup.open_session(None, "unit", mounts=mounts)
    with pytest.raises(BoxFailed, match=r"not below a cgroup mount; .*--sandbox-cgroup-parent=/nsbox$"):
        session.make("box", [limit("memory", "memory.max", "1")], None)
