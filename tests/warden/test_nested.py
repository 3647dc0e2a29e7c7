"""Boxes that a test in a box makes."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from pytest_nsbox.nsbox import NsBox
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.mounts import Tmpfs
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden.client import Warden
from tests.capabilities import cgroup_version
from tests.warden.boxes import DiedError, config, run, run_for_usage, run_in, started

pytestmark = pytest.mark.keeps_running("boxes of the module's warden")


def test_a_box_in_a_box_is_one_of_its_own(warden: Warden, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("host")

    def inner() -> tuple[int, int, str, str, list[str]]:
        before = path.read_text()
        path.write_text("inner")
        Path("/left").touch()
        names = sorted(name for name in os.listdir("/proc") if name.isdigit())
        return os.getpid(), os.getuid(), before, socket.gethostname(), names

    def outer() -> tuple[object, str, bool, str, bool]:
        path.write_text("outer")
        os.mkdir("/inner")  # where nobody else makes boxes, as in /tmp
        with started(tmpdir="/inner") as second:
            seen = run(second, inner, hostname="inner", net="none")
            again = run(second, lambda: os.path.exists("/left"))
        left = os.listdir("/inner")
        return seen, path.read_text(), os.path.exists("/left"), socket.gethostname(), bool(again or left)

    seen, inside, left, name, again = run(warden, outer, hostname="outer")
    assert seen == (2, 0, "outer", "inner", ["1", "2"])
    assert (inside, left, name, again) == ("outer", False, "outer", False)
    assert path.read_text() == "host"


def test_limits_hold_in_a_box_in_a_box(warden: Warden) -> None:
    def eat() -> int:
        return len(bytearray(200 << 20))

    def outer() -> tuple[int, str]:
        with started(tmpdir="/tmp") as second:
            box = second.acquire(Spec(mem=32 << 20, pids=10))
            try:
                run_in(box, eat)
            except DiedError as error:
                number = error.signal
            released = box.release()
        return number, "\n".join(released.counters.values())

    number, texts = run(warden, outer)
    assert number == 9
    assert "oom_kill 1" in texts


def test_the_outer_limit_holds_for_all_boxes_within(warden: Warden) -> None:
    def eat() -> int:
        return len(bytearray(200 << 20))

    def outer() -> int:
        with started(tmpdir="/tmp") as second:
            try:
                run(second, eat)
            except DiedError as error:
                return error.signal
        return 0

    # The kernel takes the largest: that is the one that eats.
    assert run(warden, outer, mem=100 << 20) == 9


def test_readonly_roots_users_and_sizes_hold_in_a_box_in_a_box(warden: Warden) -> None:
    def write() -> int:
        try:
            Path("/x").touch()
        except OSError as error:
            return error.errno or -1
        return 0

    def fill() -> int:
        try:
            Path("/x").write_bytes(bytes(3 << 20))
        except OSError as error:
            return error.errno or -1
        return 0

    def outer() -> list[int]:
        with started(tmpdir="/tmp") as second:
            return [
                run(second, write, readonly=True),
                run(second, fill, disk=1 << 20),
                run(second, os.getuid, user="nobody"),
            ]

    assert run(warden, outer) == [30, 28, 65534]


def test_changes_are_told_in_a_box_in_a_box(warden: Warden) -> None:
    def change() -> None:
        Path("/etc/passwd").write_text("x")
        Path("/etc/shadow").unlink()
        Path("/new").touch()

    def outer() -> list[tuple[str, str]]:
        with started(tmpdir="/tmp") as second:
            box = second.acquire(Spec())
            run_in(box, change)
            changes = box.changes()
            box.release()
        return changes

    assert run(warden, outer) == [("C", "/etc/passwd"), ("D", "/etc/shadow"), ("A", "/new")]


def test_what_only_the_outer_box_can_give_is_told(warden: Warden) -> None:
    if cgroup_version() != 1:
        pytest.skip("a box on v2 passes all controllers on")

    def inner() -> str:
        return Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text()

    def outer() -> list[str]:
        told = []
        with started(tmpdir="/tmp") as second:
            for limit in ({"cpu": 0.5}, {"cpuset": (0,)}):
                try:
                    told.append(run(second, inner, **limit))
                except BoxFailed as error:
                    told.append(str(error))
        return told

    advice = "inside of a box it takes such a limit of that box itself ({}= in its marker)"
    neither = run(warden, outer)
    assert [text.rpartition("; ")[2] for text in neither] == [advice.format("cpu"), advice.format("cpuset")]
    first, second = run(warden, outer, cpu=1.0)
    assert first == "50000\n"
    assert re.search(r": mkdir /sys/fs/cgroup/cpuset/\S+: Read-only file system; ", second)
    assert second.endswith("; " + advice.format("cpuset"))


def test_networks_work_in_a_box(warden: Warden) -> None:
    def outer() -> tuple[str, int, dict[int | str, int]]:
        with started(tmpdir="/tmp") as second:
            boxes = NsBox(second.connect, "/")
            lan = boxes.network("lan")
            with boxes.start(["sleep", "60"], name="db", net=lan, publish={80: 0}) as db:
                names = boxes.run(["cat", "/etc/hosts"], net=lan, check=True).stdout
                beside = boxes.run(["true"], net=db)
            boxes.close()
        return names, beside.returncode, db.ports

    names, status, ports = run(warden, outer)
    assert "\tdb\n" in names
    assert (status, list(ports)) == (0, [80])


def test_what_the_inner_box_did_is_charged_to_the_outer_one(warden: Warden) -> None:
    def outer() -> None:
        with started(tmpdir="/tmp") as second:
            run(second, lambda: sum(range(3_000_000)))

    _, released = run_for_usage(warden, outer)
    counter = "cpuacct.usage" if cgroup_version() == 1 else "cpu.stat"
    first = released.counters[counter].split()[-1 if cgroup_version() == 1 else 1]
    assert int(first) > (20_000_000 if cgroup_version() == 1 else 20_000)


def test_what_a_box_hides_is_hidden_from_boxes_in_it(warden: Warden) -> None:
    def look() -> tuple[list[str], str]:
        Path("/etc/hostname").write_text("inner")
        return os.listdir("/mnt"), Path("/etc/hostname").read_text()

    def outer() -> tuple[list[str], str]:
        Path("/mnt/mine").touch()
        with started(tmpdir="/tmp") as second:
            return run(second, look)

    assert run(warden, outer, tmpfs=(Tmpfs("/mnt"),)) == (["mine"], "inner")


def test_the_third_box_in_a_row_says_how_deep_boxes_go(warden: Warden) -> None:
    def third() -> str:
        innermost = Warden.start(config(tmpdir="/tmp"))
        try:
            innermost.acquire(Spec())
        except BoxFailed as error:
            return str(error)
        finally:
            innermost.close()
        return ""

    def outer() -> str:
        with started(tmpdir="/tmp") as second:
            return run(second, third)

    assert "the kernel stacks no more than two; boxes work two deep" in run(warden, outer)
