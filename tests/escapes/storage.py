"""Attempts on devices and file systems: to reach the host's disks, and to change mounts that keep the box in."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import tempfile
from contextlib import suppress

from tests.escapes.attempt import Place, attempt, mounted
from tests.escapes.machine import allowed_if, become_root_of_a_user_namespace
from tests.escapes.system import (
    AT_FDCWD,
    MS_BIND,
    MS_RDONLY,
    MS_REMOUNT,
    call,
    mount,
    open_to_write,
    syscall,
    umount,
)

LOOP_SET_FD, LOOP_CLR_FD, LOOP_CTL_GET_FREE = 0x4C00, 0x4C01, 0x4C82
FITHAW, FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE = 0xC0045878, 0x80086601, 0x40086602, 0x10
FAN_REPORT_FID, FAN_MARK_ADD, FAN_MARK_FILESYSTEM, FAN_CREATE = 0x200, 1, 0x100, 0x100


def need_device(at: Place) -> None:
    if not at.device:
        raise OSError(errno.ENOSYS, "no loop devices")


@attempt("EPERM", absent=("ENOSYS",))
def block_device_by_mknod(at: Place) -> None:
    need_device(at)
    with tempfile.TemporaryDirectory() as place:
        os.mknod(f"{place}/disk", stat.S_IFBLK | 0o600, os.stat(at.device).st_rdev)
        os.close(os.open(f"{place}/disk", os.O_RDWR))


@attempt("EPERM", absent=("ENOSYS",))
def block_device_by_mknod_in_a_shared_path(at: Place) -> None:
    need_device(at)
    path = f"{at.shared}/disk-{os.getpid()}"
    try:
        os.mknod(path, stat.S_IFBLK | 0o600, os.stat(at.device).st_rdev)
        os.close(os.open(path, os.O_RDWR))
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


@attempt("EPERM", absent=("ENOSYS",))
def block_device_by_mknod_in_a_nested_user_namespace(at: Place) -> None:
    need_device(at)
    if at.inside:
        become_root_of_a_user_namespace()
    block_device_by_mknod(at)


@attempt("EPERM")
def kernel_log_device_by_mknod(at: Place) -> None:
    with tempfile.TemporaryDirectory() as place:
        os.mknod(f"{place}/kmsg", stat.S_IFCHR | 0o600, os.makedev(1, 11))
        open_to_write(f"{place}/kmsg")


@attempt("EACCES", absent=("ENOSYS",))
def block_device_that_the_host_has(at: Place) -> None:
    need_device(at)
    os.close(os.open(at.device, os.O_RDWR))


@attempt("EACCES", absent=("ENOSYS",))
def block_device_in_a_shared_path(at: Place) -> None:
    need_device(at)
    os.close(os.open(at.shared_device, os.O_RDWR))


def lift_nodev(at: Place, directory: str, root: str) -> None:
    """Remount what `directory` lies in, which in a box is the mount at `root`."""
    if not at.inside:
        bind(directory, directory, nodev=True)
    mount("none", root if at.inside else directory, flags=MS_REMOUNT | MS_BIND)


@attempt("EPERM", absent=("ENOSYS",))
def block_device_after_a_remount(at: Place) -> None:
    need_device(at)
    lift_nodev(at, at.directory, "/")
    os.close(os.open(at.device, os.O_RDWR))


@attempt("EPERM", absent=("ENOSYS",))
def block_device_in_a_shared_path_after_a_remount(at: Place) -> None:
    need_device(at)
    lift_nodev(at, at.shared, at.shared)
    os.close(os.open(at.shared_device, os.O_RDWR))


@attempt("EPERM", absent=("ENOSYS",))
def block_device_in_a_clone_of_a_shared_path(at: Place) -> None:
    need_device(at)
    # OPEN_TREE_CLONE; struct mount_attr: set, clear, propagation, user namespace; AT_EMPTY_PATH, MOUNT_ATTR_NODEV.
    tree = syscall("open_tree", AT_FDCWD, at.shared.encode(), 1)
    syscall("mount_setattr", tree, b"", 0x1000, struct.pack("=4Q", 0, 4, 0, 0), 32)
    os.close(os.open(os.path.basename(at.shared_device), os.O_RDWR, dir_fd=tree))


def bind(source: str, target: str, *, nodev: bool = False, readonly: bool = False) -> None:
    mount(source, target, flags=MS_BIND)
    mount("none", target, flags=MS_REMOUNT | MS_BIND | (4 if nodev else 0) | (MS_RDONLY if readonly else 0))


@attempt("ENOENT", absent=("ENOSYS",))
def loop_device(at: Place) -> None:
    need_device(at)
    control = os.open("/dev/loop-control", os.O_RDWR)
    use_loop_device(f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}")


@attempt("EPERM", absent=("ENOSYS",))
def loop_device_by_mknod(at: Place) -> None:
    need_device(at)
    with tempfile.TemporaryDirectory() as place:
        os.mknod(f"{place}/control", stat.S_IFCHR | 0o600, os.makedev(10, 237))
        number = fcntl.ioctl(os.open(f"{place}/control", os.O_RDWR), LOOP_CTL_GET_FREE)
        os.mknod(f"{place}/loop", stat.S_IFBLK | 0o600, os.makedev(7, number))
        use_loop_device(f"{place}/loop")


def use_loop_device(path: str) -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(1 << 20)
        device = os.open(path, os.O_RDWR)
        fcntl.ioctl(device, LOOP_SET_FD, file.fileno())
        fcntl.ioctl(device, LOOP_CLR_FD)


@attempt("EPERM", absent=("ENOSYS",))
def mount_of_a_block_device(at: Place) -> None:
    need_device(at)
    with mounted(at.device, "ext4"):
        pass


@attempt("EPERM")
def mount_of_all_devices(at: Place) -> None:
    with mounted("none", "devtmpfs") as place:
        os.close(os.open(f"{place}/null", os.O_RDONLY))


@attempt("EPERM", absent=("ENODEV",))
def mount_of_debugfs(at: Place) -> None:
    with mounted("none", "debugfs"):
        pass


@attempt("EPERM", absent=("ENODEV",))
def mount_of_tracefs(at: Place) -> None:
    with mounted("none", "tracefs"):
        pass


@attempt("EPERM", absent=("ENODEV",))
def mount_of_securityfs(at: Place) -> None:
    with mounted("none", "securityfs"):
        pass


@attempt("ENOENT", absent=("ENOENT",))
def file_system_in_user_space(at: Place) -> None:
    os.close(os.open("/dev/fuse", os.O_RDWR))


@attempt("EPERM")
def host_file_system_made_read_only(at: Place) -> None:
    if at.inside:
        mount("none", at.shared, flags=MS_REMOUNT | MS_RDONLY)
    else:
        with mounted("none", "tmpfs") as place:
            mount("none", place, flags=MS_REMOUNT | MS_RDONLY)


@attempt("EPERM")
def host_file_system_thawed(at: Place) -> None:
    # EINVAL: it is not frozen. EOPNOTSUPP: it cannot be.
    with allowed_if(errno.EINVAL, errno.EOPNOTSUPP):
        fcntl.ioctl(os.open(at.shared, os.O_RDONLY), FITHAW, 0)


@attempt("EPERM", absent=("ENOSYS",))
def events_of_the_whole_host_file_system(at: Place) -> None:
    group = call("fanotify_init", FAN_REPORT_FID, os.O_RDONLY)
    call("fanotify_mark", group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_CREATE, AT_FDCWD, at.shared.encode())


@attempt("EPERM", absent=("ENOTTY",))
def file_that_the_host_cannot_remove(at: Place) -> None:
    with tempfile.NamedTemporaryFile(dir=at.shared) as file:
        flags = struct.unpack("l", fcntl.ioctl(file, FS_IOC_GETFLAGS, bytes(8)))[0]
        fcntl.ioctl(file, FS_IOC_SETFLAGS, struct.pack("l", flags | FS_IMMUTABLE))
        fcntl.ioctl(file, FS_IOC_SETFLAGS, struct.pack("l", flags))


@attempt("EPERM")
def attribute_that_overlays_obey(at: Place) -> None:
    with tempfile.TemporaryDirectory(dir=at.shared) as place:
        os.setxattr(place, "trusted.overlay.opaque", b"n")


@attempt("EPERM", box={"tmpfs": ["/small:1M"]})
def larger_tmpfs(at: Place) -> None:
    if at.inside:
        mount("none", "/small", flags=MS_REMOUNT, data="size=1g")
    else:
        with mounted("none", "tmpfs", "size=1m") as place:
            mount("none", place, flags=MS_REMOUNT, data="size=1g")


@attempt("EPERM", box={"readonly": True})
def root_made_writable(at: Place) -> None:
    target = "/" if at.inside else at.shared
    if not at.inside:
        bind(target, target, readonly=True)
    mount("none", target, flags=MS_REMOUNT | MS_BIND)


@attempt("EPERM", box={"volumes": ["{shared}:/mnt-readonly:ro"]})
def volume_made_writable(at: Place) -> None:
    target = "/mnt-readonly" if at.inside else at.shared
    if not at.inside:
        bind(target, target, readonly=True)
    mount("none", target, flags=MS_REMOUNT | MS_BIND)


HIDDEN = {"volumes": ["{shared}:{directory}"]}


@attempt("EINVAL", box=HIDDEN)
def directory_that_a_volume_hides(at: Place) -> None:
    if not at.inside:
        bind(at.shared, at.directory)
    umount(at.directory)


@attempt("EINVAL", box=HIDDEN)
def directory_that_a_volume_hides_by_a_bind_of_the_root(at: Place) -> None:
    if not at.inside:
        bind(at.shared, at.directory)
    with tempfile.TemporaryDirectory() as place:
        mount("/", place, flags=MS_BIND)
        try:
            os.stat(place + at.canary)
        finally:
            umount(place)


@attempt("ENOENT", box=HIDDEN)
def directory_that_a_volume_hides_in_the_second_view_of_the_root(at: Place) -> None:
    if not at.inside:
        with tempfile.TemporaryDirectory() as place:
            mount("/", place, flags=MS_BIND)
            bind(at.shared, at.directory)
            os.stat(place + at.canary)
            umount(place)
    else:
        os.stat(f"/dev/.nsbox/0{at.canary}")


@attempt("EINVAL", box=HIDDEN)
def directory_that_a_volume_hides_by_an_overlay_of_the_root(at: Place) -> None:
    if not at.inside:
        bind(at.shared, at.directory)
    with mounted("none", "tmpfs") as top:
        for name in ("upper", "work", "merged"):
            os.mkdir(f"{top}/{name}")
        options = f"lowerdir=/,upperdir={top}/upper,workdir={top}/work" + (",userxattr" if at.inside else "")
        mount("none", f"{top}/merged", "overlay", data=options)
        try:
            os.stat(f"{top}/merged{at.canary}")
        finally:
            umount(f"{top}/merged")
