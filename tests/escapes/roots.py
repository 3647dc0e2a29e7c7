"""Attempts to get at a root directory, or at files of the host's, that are not the box's."""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress

from tests.escapes.attempt import HeldError, Place, attempt
from tests.escapes.system import (
    AT_FDCWD,
    MS_BIND,
    NEWNS,
    address_of,
    call,
    mount,
    open_to_write,
    setns,
    syscall,
    umount,
)

OVERLAYFS_MAGIC = 0x794C7630
OWN = "the box's own root"


def root() -> tuple[int, int]:
    found = os.stat("/")
    return found.st_dev, found.st_ino


def enter_jail(at: Place) -> tuple[int, int]:
    """Outside, a directory stands for the box. Returns which directory is our root."""
    if not at.inside:
        os.chroot(at.directory)
        os.chdir("/")
    os.makedirs("/jail", exist_ok=True)
    return root()


def check(own: tuple[int, int]) -> None:
    if root() == own:
        raise HeldError(OWN)


@attempt(OWN)
def chroot_and_fchdir(at: Place) -> None:
    own = enter_jail(at)
    here = os.open("/", os.O_RDONLY)
    os.chroot("/jail")
    os.fchdir(here)
    climb()
    check(own)


@attempt(OWN)
def chroot_and_chdir(at: Place) -> None:
    """A working directory that a chroot left outside."""
    own = enter_jail(at)
    os.chroot("/jail")
    climb()
    check(own)


def climb() -> None:
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")


@attempt(OWN)
def own_mount_namespace_entered_again(at: Place) -> None:
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    own = enter_jail(at)
    os.chroot("/jail")
    setns(namespace, NEWNS)
    check(own)


@attempt(OWN, alone=True)
def another_root_and_back(at: Place) -> None:
    """Back from a pivot_root(2), as the box's process 1 made one: the only old root to be found is the box's."""
    own = root()
    place = f"{at.directory}/pivot"
    os.makedirs(place, exist_ok=True)
    mount("none", place, "tmpfs")
    os.mkdir(f"{place}/old")
    syscall("pivot_root", place.encode(), f"{place}/old".encode())
    os.chroot("/old")
    if at.inside:
        check(own)
    os.stat(at.canary)


def is_overlay(path: str) -> bool:
    buffer = ctypes.create_string_buffer(256)
    call("statfs", path.encode(), address_of(buffer))
    return bool(struct.unpack_from("l", buffer, 0)[0] == OVERLAYFS_MAGIC)


@attempt(OWN, alone=True)
def everything_unmounted(at: Place) -> None:
    """What a mount covers shows when it goes."""
    own = root()
    if not at.inside:
        mount("none", at.directory, "tmpfs")
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        points = [line.split(" ")[4] for line in file]
    for point in reversed(points):
        with suppress(OSError):
            umount(point)
    if at.inside:
        os.chdir("/")
        assert is_overlay(at.directory), "the host's own file system shows"
        check(own)
    os.stat(at.canary)


@attempt("EINVAL")
def root_taken_off_the_root_below(at: Place) -> None:
    if not at.inside:
        os.makedirs(f"{at.directory}/top", exist_ok=True)
        mount("none", f"{at.directory}/top", "tmpfs")
        os.chroot(f"{at.directory}/top")
    umount("/")


@attempt("EPERM")
def file_by_its_handle(at: Place) -> None:
    open_by_handle(at, 0, os.O_RDONLY)


# Since Linux 6.12 who may bind-mount a directory may open handles of directories below it.
@attempt("EPERM or ESTALE")
def directory_by_its_handle(at: Place) -> None:
    open_by_handle(at, 1, os.O_RDONLY | os.O_DIRECTORY)


def open_by_handle(at: Place, number: int, flags: int) -> None:
    """By way of a shared path, which lies on the same file system of the host."""
    kind, text = at.handles[number]
    data = bytes.fromhex(text)
    handle = struct.pack("=Ii", len(data), kind) + data
    os.close(call("open_by_handle_at", os.open(at.shared, os.O_RDONLY), handle, flags))


@attempt("EACCES")
def inherited_descriptor_opened_again(at: Place) -> None:
    open_to_write(f"/proc/self/fd/{at.fds['file']}")


@attempt("EACCES")
def file_beside_an_inherited_directory(at: Place) -> None:
    os.close(os.open("canary", os.O_WRONLY, dir_fd=at.fds["directory"]))


@attempt("EACCES")
def file_made_in_an_inherited_directory(at: Place) -> None:
    os.close(os.open("made", os.O_WRONLY | os.O_CREAT, dir_fd=at.fds["directory"]))
    os.unlink("made", dir_fd=at.fds["directory"])


@attempt("EPERM")
def mode_of_an_inherited_file(at: Place) -> None:
    os.fchmod(at.fds["file"], 0o644)


@attempt("EINVAL")
def mount_from_an_inherited_directory(at: Place) -> None:
    mount(f"/proc/self/fd/{inherited(at)}", "/mnt", flags=MS_BIND)


@attempt("EINVAL")
def clone_of_an_inherited_mount(at: Place) -> None:
    os.close(syscall("open_tree", AT_FDCWD, f"/proc/self/fd/{inherited(at)}".encode(), 1))


def inherited(at: Place) -> int:
    """A directory of the mount namespace that pytest is in."""
    return at.fds["directory"] if at.inside else os.open(at.directory, os.O_RDONLY)


@attempt("the copy of the box alone")
def write_to_a_file_of_the_host(at: Place) -> None:
    """The test looks at the canary afterwards; here it is one that the host may lose."""
    path = at.canary if at.inside else f"{at.directory}/expendable"
    with open(path, "w", encoding="ascii") as file:
        file.write("escaped")
    if at.inside and is_overlay(os.path.dirname(path)):
        raise HeldError("the copy of the box alone")
