"""io= on whatever the scratch lies on: the kernel slows whole disks, which a partition and a mapped device lead to."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.spec import Spec
from tests.capabilities import cgroup_version, require
from tests.warden.boxes import run, started
from tests.warden.disks import mapped, mount_ext4, partitioned
from tests.warden.test_host_filesystems import mount_at, with_own_mounts

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "cgroup:io or blkio")

RATE = 4 << 20


def limits() -> tuple[str, float]:
    """What a box reads of its limit, and how long it takes to get 2 MB to the disk."""
    files = ("/sys/fs/cgroup/io.max", "/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")
    text = next(Path(file).read_text() for file in files if os.path.exists(file))
    began = time.monotonic()
    with open("/var/tmp/file", "wb") as file:
        for _ in range(4):
            file.write(bytes(1 << 19))
            file.flush()
            os.fsync(file.fileno())
    return text, time.monotonic() - began


@pytest.mark.needs("program:losetup", "program:mke2fs")
@pytest.mark.parametrize("kind", ["partition", "mapped device"])
def test_what_is_not_a_whole_disk_is_slowed_where_the_kernel_can(tmp_path: Path, kind: str) -> None:
    if kind == "mapped device":
        require("device mapper")

    def play() -> tuple[str, str, float]:
        with ExitStack() as stack:
            number, node = stack.enter_context(partitioned(tmp_path))
            if kind == "mapped device":
                number, node = stack.enter_context(mapped(node, tmp_path))
            mount_ext4(node, tmp_path / "scratch")
            stack.callback(os.system, f"umount {tmp_path}/scratch")
            with started(tmpdir=str(tmp_path / "scratch")) as warden:
                return number, *run(warden, limits, io=(("wbps", RATE),))

    number, text, seconds = with_own_mounts(play)
    more = f"wbps={RATE}" if cgroup_version() == 2 else str(RATE)
    assert number in text.split()
    assert more in text.split()
    assert seconds > 0.3


def test_a_scratch_in_memory_is_an_error_that_says_so(tmp_path: Path) -> None:
    def play() -> str:
        mount_at(tmp_path / "scratch")
        with started(tmpdir=str(tmp_path / "scratch")) as warden, pytest.raises(BoxFailed) as told:
            warden.acquire(Spec(io=(("wbps", RATE),)))
        return str(told.value)

    assert with_own_mounts(play) == (
        "io: the scratch lies on tmpfs, which is on no disk: set TMPDIR to a directory on one"
    )
