"""What boxes of this session will be made of, from what can be read at once: for the header, before any box is made.

What is really there shows when a box is made; the doctor tries it.
"""

from __future__ import annotations

import os

from pytest_nsbox.kernel import cgroup, cgroup_v2
from pytest_nsbox.kernel.cgroup_tree import Group
from pytest_nsbox.kernel.mount import read_mounts
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.policy.hostmounts import parse_mountinfo
from pytest_nsbox.policy.record import keyword_record
from pytest_nsbox.warden.ids import find_mode, kernel_shifts

# Of those that a root lies on; Documentation/filesystems/idmappings.rst and FS_ALLOW_IDMAP in the kernel's source.
_IDMAPPED = frozenset({"bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "squashfs", "tmpfs", "xfs"})
_LIMITING = frozenset({"blkio", "cpu", "cpuset", "hugetlb", "io", "memory", "pids"})


@keyword_record
class Outlook:
    """``mode``: "shifted", "identity", "nested" or "rootless"; ``version`` of cgroup, None if no group can be made;
    ``driver``: "cgroupfs" or "systemd"; ``controllers`` that limits can use.
    """

    mode: str
    version: int | None = None
    driver: str = "cgroupfs"
    controllers: tuple[str, ...] = ()


def look(parent: str | None) -> Outlook:
    """Return it, for the cgroup parent that the user named."""
    mode = find_mode()
    if mode == "shifted" and not (kernel_shifts() and _shows_other_ids()):
        mode = "identity"
    try:
        mounts = cgroup.find_mounts()
    except KernelError:
        return Outlook(mode=mode)
    v1 = {name for mount in mounts if mount.version == 1 and _is_ours(mount, parent) for name in mount.controllers}
    if {"memory", "pids"} & v1:
        named = {name for name in v1 if not name.startswith("name=")}
        return Outlook(mode=mode, version=1, controllers=tuple(sorted(named & _LIMITING)))
    unified = cgroup.unified(mounts)
    if unified is None:
        return Outlook(mode=mode)
    if parent is None and cgroup.systemd_is_booted():
        from pytest_nsbox.kernel import systemd

        if systemd.is_wanted():
            given = systemd.offered()
            return Outlook(mode=mode, version=2 if given else None, driver="systemd", controllers=given)
    return _unified(mode, unified, parent)


def _shows_other_ids() -> bool:
    """Say if the root's file system is of a kind that can be idmapped."""
    roots = [mount.fstype for mount in parse_mountinfo(read_mounts()) if mount.target == "/"]
    return bool(roots) and roots[-1] in _IDMAPPED


def _unified(mode: str, mount: cgroup.Mount, parent: str | None) -> Outlook:
    path = mount.own_path()
    group = Group(mount.point.rstrip("/") if parent is not None or path is None else cgroup_v2.own_group(path))
    if not _is_ours(mount, parent):
        return Outlook(mode=mode)
    try:
        offered = (group.read("cgroup.controllers") or "").split()
        # Only an empty group, one that was handed to us, or the real root passes anything on.
        full = group.read("cgroup.type") is not None and bool((group.read("cgroup.procs") or "").strip())
    except KernelError:
        return Outlook(mode=mode)
    if full and not cgroup_v2.is_delegated(group):
        offered = []
    return Outlook(mode=mode, version=2, controllers=tuple(sorted(_LIMITING & set(offered))))


def _is_ours(mount: cgroup.Mount, parent: str | None) -> bool:
    """Say if we may make groups where boxes' groups would be made."""
    if parent is None:
        path = mount.own_path()
        if path is not None and mount.version == 2:
            path = cgroup_v2.own_group(path)
        return path is not None and os.access(path, os.W_OK)
    path = mount.point
    for part in parent.strip("/").split("/"):
        if not os.path.isdir(f"{path}/{part}"):
            break
        path = f"{path}/{part}"
    return os.access(path, os.W_OK)
