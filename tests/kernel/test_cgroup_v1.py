"""What only v1 has: cpusets that begin empty, hierarchies joined on demand, frozen tasks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_nsbox.kernel import cgroup, cgroup_tree, mount, namespaces
from pytest_nsbox.kernel.cgroup_node import Node, Session
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.limits import cgroup_writes
from pytest_nsbox.policy.spec import Spec
from tests.capabilities import require, require_cgroup_version
from tests.kernel.cgroups import limit, node_of, opened, run, started
from tests.warden.boxes import in_a_process

pytestmark = pytest.mark.needs("root", "cgroup:memory", "cgroup:pids", "cgroup:cpu")


@pytest.fixture
def session() -> Iterator[Session]:
    require_cgroup_version(1)
    with opened() as session:
        yield session


def views(node):
    return {view: Path(path) for view, path in node.views}


def test_a_cpuset_holds_the_cpus_and_the_nodes_of_its_parent_can_be_used(session):
    require("cgroup:cpuset")
    last = max(os.sched_getaffinity(0))
    with node_of(session, Spec(cpuset=(last,))) as node:
        status, output = run(node, "import os; print(sorted(os.sched_getaffinity(0)), bytearray(1 << 20)[:0])")
        assert (status, output) == (0, f"[{last}] bytearray(b'')\n")
        assert views(node)["cpuset"].joinpath("cpuset.mems").read_text().strip()


def test_cpus_that_the_machine_lacks_are_refused_by_name(session):
    require("cgroup:cpuset")
    with pytest.raises(KernelError, match=r"^write '4000' to /.*/cpuset\.cpus: "):
        session.make("box", [limit("cpuset", "cpuset.cpus", "4000")], None)


def test_more_cpu_than_a_group_above_has_is_told(session):
    with node_of(session, Spec(cpu=0.5)) as node:
        above = views(node)["cpu"].parent
        above.joinpath("cpu.cfs_quota_us").write_text("50000")
        reason = (
            r"cpu\.cfs_quota_us: Invalid argument \(a group above it allows less: lower cpu=, or raise its quota\)$"
        )
        with pytest.raises(BoxFailed, match=reason):
            session.make("other", cgroup_writes(Spec(cpu=1), 1), None)


def test_a_box_joins_the_counting_hierarchies_and_those_of_its_limits(session):
    with node_of(session, Spec()) as node:
        assert views(node).keys() == {"cpuacct", "memory", "pids"}
    with node_of(session, Spec(cpu=0.5)) as node:
        assert views(node).keys() == {"cpu", "cpuacct", "memory", "pids"}
        assert len(node.attach) == 4
        assert node.open_directory() is None


def test_a_screen_stands_in_each_hierarchy_that_boxes_need_not_join(session):
    session.open_screens()
    paths = [Path(os.readlink(f"/proc/self/fd/{fd}")) for fd in session.screens]
    joined = {mount.point for mount in cgroup.find_mounts() if mount.controllers & {"cpuacct", "memory", "pids"}}
    stand = {mount.point for mount in cgroup.find_mounts() if any(mount.point in map(str, p.parents) for p in paths)}
    assert stand == {mount.point for mount in cgroup.find_mounts()} - joined
    # Not the session's own group, in which boxes with a limit of that controller live.
    assert {path.parent.name for path in paths} == {"screen"}
    assert {path.parent.stat().st_uid for path in paths} == {0}


@pytest.fixture
def unified() -> Path:
    """The root of cgroup v2 beside v1, if we live in it."""
    require_cgroup_version(1)
    mount = cgroup.unified(cgroup.find_mounts())
    if mount is None or mount.own_path() != mount.point or Path(mount.point, "cgroup.type").exists():
        pytest.skip("we do not live in the root of cgroup v2 beside v1")
    return Path(mount.point)


def screen_below(unified: Path, session: Session) -> Path:
    session.open_screens()
    paths = [Path(os.readlink(f"/proc/self/fd/{fd}")) for fd in session.screens]
    return next(path for path in paths if path.is_relative_to(unified))


def test_beside_v1_nobody_waits_for_the_lock_of_v2(session, unified: Path):
    door = screen_below(unified, session)
    assert door.name == "cgroup.threads"
    assert door.with_name("cgroup.type").read_text() == "threaded\n"
    with started(Node("box", (), [], frozenset()), "sleep", "600") as process:
        door.write_text(str(process.pid))
        assert door.read_text().split() == [str(process.pid)]
        session.close()
        assert process.wait(10) == -signal.SIGKILL
    assert not door.parent.parent.exists()


def test_somebody_elses_group_of_v2_stays_what_it_is(unified: Path):
    theirs = unified / "nsbox-tests-theirs"
    theirs.mkdir()
    try:
        session = cgroup.open_session(f"/{theirs.name}", "unit")
        try:
            assert screen_below(unified, session).name == "cgroup.procs"
            assert theirs.joinpath("cgroup.type").read_text() == "domain\n"
        finally:
            session.close()
    finally:
        theirs.rmdir()


def test_sessions_that_make_one_parent_at_the_same_time_agree_on_its_kind(unified: Path):
    def door_of(name: str) -> str:
        session = cgroup.open_session("/nsbox-tests-race", name)
        try:
            return screen_below(unified, session).name
        finally:
            session.close()

    for attempt in range(10):
        with ThreadPoolExecutor(8) as pool:  # a fork each, which threads only wait for
            doors = list(pool.map(lambda name: in_a_process(lambda: door_of(name)), map(str, range(8))))
        assert set(doors) == {"cgroup.threads"}, f"attempt {attempt}"
    assert not (unified / "nsbox-tests-race").exists()


def test_who_else_locks_the_groups_lets_no_session_wait_for_ever(unified: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cgroup_tree, "LOCKED_WITHIN", 0.2)
    fd = os.open(unified, os.O_RDONLY)
    session = cgroup.open_session("/nsbox-tests-locked", "unit")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        began = time.monotonic()
        assert screen_below(unified, session).name == "cgroup.threads"
        assert time.monotonic() - began >= 0.2
    finally:
        session.close()
        os.close(fd)


def test_the_attach_descriptors_are_the_tasks_files(session):
    with node_of(session, Spec()) as node:
        paths = [os.readlink(f"/proc/self/fd/{fd}") for fd in node.attach]
        assert paths == [f"{path}/tasks" for path in views(node).values()]
        assert not any(os.get_inheritable(fd) for fd in node.attach)


def test_a_frozen_process_is_thawed_to_be_killed(session):
    require("cgroup:freezer")
    node = session.make("box", [limit("freezer", "freezer.state", "THAWED")], None)
    with started(node, "sleep", "600") as process:
        views(node)["freezer"].joinpath("freezer.state").write_text("FROZEN")
        node.remove()
        assert process.wait(10) == -signal.SIGKILL


def test_the_peak_of_memory_can_begin_anew(session):
    with node_of(session, Spec()) as node:
        run(node, "bytearray(64 << 20)")
        assert int(node.read()["memory.max_usage_in_bytes"]) > 64 << 20
        node.reset_peaks()
        assert int(node.read()["memory.max_usage_in_bytes"]) < 64 << 20


TOUCH = """
import mmap, os
MAP_HUGETLB, MAP_NORESERVE = 0x40000, 0x4000
page = mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE)
page[0] = 1
"""


def test_huge_pages_are_limited_where_the_hierarchy_that_the_error_names_is_mounted(session, tmp_path):
    if os.uname().machine != "x86_64":
        pytest.skip("pages of other sizes")
    want = Spec(hugetlb=(("2MB", 0),))
    with pytest.raises(BoxFailed) as told:
        session.make("box", cgroup_writes(want, 1), None)
    fix = re.fullmatch(
        "the cgroup controller hugetlb cannot be used: boxes use cgroup v1 here, and no mounted hierarchy has it; (.*)",
        str(told.value),
    )
    if fix is None:
        pytest.skip(str(told.value))
    point = "/sys/fs/cgroup/hugetlb"

    def play():
        namespaces.unshare(namespaces.NEWNS)
        mount.make_private("/")
        # The host's own mounts of cgroup stay below it; nothing new must lie on the host.
        mount.attach(mount.new_mount("tmpfs"), str(tmp_path))
        subprocess.run(fix[1].replace(point, f"{tmp_path}/hugetlb"), shell=True, check=True)
        with opened("huge") as other, node_of(other, want) as node:
            path = views(node)["hugetlb"]
            limit = (path / "hugetlb.2MB.limit_in_bytes").read_text()
            status, _ = run(node, TOUCH)
            # The limit is asked before the pool, which may be empty.
            return limit, status, int((path / "hugetlb.2MB.failcnt").read_text()) > 0

    def unmount():
        namespaces.unshare(namespaces.NEWNS)
        # It may be on its way already.
        with contextlib.suppress(KernelError):
            os.close(mount.new_mount("cgroup", (("hugetlb", None),)))

    try:
        assert in_a_process(play) == ("0\n", -signal.SIGBUS, True)
    finally:
        # The hierarchy goes with its last mount, unless a group of it, removed just now, is not gone yet.
        deadline = time.monotonic() + 10
        while not re.search(r"^hugetlb\t0\t", Path("/proc/cgroups").read_text(), re.MULTILINE):
            assert time.monotonic() < deadline, "the hierarchy of hugetlb stays"
            time.sleep(0.01)
            in_a_process(unmount)
