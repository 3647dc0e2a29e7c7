from __future__ import annotations

import pytest

from pytest_nsbox.policy.hostmounts import Mounted, inspected, is_first, is_within, parse_mountinfo, visible

MOUNTINFO = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
28 27 0:25 /sub\040dir /mnt/a\040b\134c ro,nosuid - tmpfs tmpfs rw,size=4k
29 27 0:26 / /srv rw master:2 - nfs4 server:/srv ro,vers=4.2
"""


def test_fields_are_read_and_escapes_undone() -> None:
    mounts = parse_mountinfo(MOUNTINFO)
    assert mounts[2] == Mounted(
        28, 27, "0:25", "/sub dir", "/mnt/a b\\c", readonly=True, fstype="tmpfs", source="tmpfs"
    )
    assert [mount.readonly for mount in mounts] == [False, False, True, True]
    assert [mount.pseudo for mount in mounts] == [True, False, False, False]


def mount(number: int, parent: int, target: str) -> Mounted:
    return Mounted(number, parent, "0:1", "/", target, readonly=False, fstype="tmpfs")


def test_a_mount_on_top_hides_the_one_below() -> None:
    root, first, second = mount(1, 0, "/"), mount(2, 1, "/a"), mount(3, 2, "/a")
    assert visible((root, first, second)) == (root, second)


def test_a_mount_above_hides_those_within() -> None:
    root, inner, outer = mount(1, 0, "/"), mount(2, 1, "/a/b"), mount(3, 1, "/a")
    assert visible((root, inner, outer)) == (root, outer)


def test_a_root_that_lies_on_no_other_mount_is_the_first() -> None:
    assert is_first((mount(1, 1, "/"), mount(2, 1, "/a")))
    assert not is_first((mount(2, 3, "/a"), mount(3, 1, "/")))


def test_mounts_beside_and_within_each_other_stay() -> None:
    mounts = (mount(1, 0, "/"), mount(2, 1, "/a"), mount(3, 2, "/a/b"), mount(4, 1, "/ab"))
    assert visible(mounts) == mounts


def test_a_root_that_covers_another_is_the_one_that_is_seen() -> None:
    below, root, inner = mount(1, 0, "/"), mount(2, 1, "/"), mount(3, 2, "/a")
    assert visible((below, root, inner)) == (root, inner)


@pytest.mark.parametrize(
    ("path", "directory", "within"),
    [("/a", "/a", True), ("/a/b", "/a", True), ("/ab", "/a", False), ("/a", "/", True), ("/", "/a", False)],
)
def test_paths_lie_within_directories(path: str, directory: str, within: bool) -> None:
    assert is_within(path, directory) is within


def test_inspect_shows_places_as_they_are_called() -> None:
    mountinfo = r"36 35 98:0 / /mnt\040a rw,noatime shared:1 - ext4 /dev/disk\040b rw,errors=continue" + "\n"
    assert inspected(mountinfo, "4:memory:/a\n0::/b:c\n") == {
        "Mounts": [{"Type": "ext4", "Source": "/dev/disk b", "Destination": "/mnt a", "Options": "rw,noatime"}],
        "Cgroup": {"memory": "/a", "": "/b:c"},
    }
