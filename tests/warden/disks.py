"""Disks of a test's own: a file as a disk with one partition, and a device-mapper device on it."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_nsbox.kernel import libc, mount

_START, _SECTOR = 2048, 512
_BLKPG = 0x1269
# struct dm_ioctl: version, size, start of data, targets, opened, flags, event, padding, device, name, uuid, padding
_DM = struct.Struct("=3I2IIiI2IQ128s129s7x")
_DM_CREATE, _DM_REMOVE, _DM_SUSPEND, _DM_LOAD = (0xC138FD00 | number for number in (3, 4, 6, 9))


@contextmanager
def partitioned(place: Path, megabytes: int = 48) -> Iterator[tuple[str, Path]]:
    """A disk whose one partition holds an ext4: its number ("7:0"), and a node of the partition."""
    image = place / "image"
    size = megabytes << 20
    with image.open("wb") as file:
        file.truncate(size)
    options = ["-q", "-t", "ext4", "-O", "^has_journal", "-E", f"offset={_START * _SECTOR}"]
    blocks = (size - _START * _SECTOR) >> 10
    path = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    subprocess.run(["mke2fs", *options, str(image), f"{blocks}k"], check=True, env=path, stdout=subprocess.DEVNULL)
    command = ["losetup", "--find", "--show", str(image)]
    loop = subprocess.run(command, check=True, env=path, stdout=subprocess.PIPE, text=True).stdout.strip()
    try:
        name = os.path.basename(loop)
        number = Path(f"/sys/block/{name}/dev").read_text().strip()
        _partition(loop, 1, size - _START * _SECTOR)
        try:
            yield number, _node(place / "partition", Path(f"/sys/block/{name}/{name}p1/dev").read_text())
        finally:
            # It would outlive what the loop device was told to show.
            _partition(loop, 2, 0)
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True, env=path)


def _partition(disk: str, operation: int, size: int) -> None:
    """Add one to a disk that has no table of them (operation 1), or delete it (2). Source: linux/blkpg.h."""
    about = libc.Buffer(struct.pack("=qqi64s64s4x", _START * _SECTOR, size, 1, b"", b""))
    with open(disk, "rb") as file:
        fcntl.ioctl(file, _BLKPG, struct.pack("@iiiP", operation, 0, about.size, about.address))


@contextmanager
def mapped(disk: Path, place: Path) -> Iterator[tuple[str, Path]]:
    """A linear device on `disk`: its number, and a node of it."""
    size = int(Path(f"/sys/dev/block/{_number(disk)}/size").read_text())
    name = f"nsbox-{os.getpid()}".encode()
    control = os.open("/dev/mapper/control", os.O_RDWR)
    try:
        answer = _ask(control, _DM_CREATE, name)
        device = os.makedev((answer >> 8) & 0xFFF, (answer & 0xFF) | ((answer >> 12) & 0xFFF00))
        try:
            text = f"{_number(disk)} 0\0".encode().ljust(24, b"\0")
            _ask(control, _DM_LOAD, name, struct.pack("=QQiI16s", 0, size, 0, 40 + len(text), b"linear") + text)
            _ask(control, _DM_SUSPEND, name)  # without a flag: resume
            number = f"{os.major(device)}:{os.minor(device)}"
            yield number, _node(place / "mapped", number)
        finally:
            _ask(control, _DM_REMOVE, name)
    finally:
        os.close(control)


def _ask(control: int, request: int, name: bytes, targets: bytes = b"") -> int:
    """Make a request of device mapper; return the number of the device. Source: linux/dm-ioctl.h of the kernel."""
    size = _DM.size + len(targets)
    words = (4, 0, 0, size, _DM.size, 1 if targets else 0, 0, 0, 0, 0, 0, name, b"")
    buffer = bytearray(_DM.pack(*words) + targets)
    fcntl.ioctl(control, request, buffer)
    number: int = _DM.unpack(buffer[: _DM.size])[10]
    return number


def _number(node: Path) -> str:
    at = node.stat().st_rdev
    return f"{os.major(at)}:{os.minor(at)}"


def _node(path: Path, number: str) -> Path:
    major, minor = number.split(":")
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(int(major), int(minor)))
    return path


def mount_ext4(node: Path, place: Path) -> None:
    place.mkdir()
    fd = mount.new_mount("ext4", (("source", str(node)),))
    mount.attach(fd, str(place))
    os.close(fd)
    place.chmod(0o1777)
