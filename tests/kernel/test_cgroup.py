"""Cgroup sessions and nodes on this machine's own hierarchies; tests/vm runs the same under v2."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest

from pytest_nsbox.kernel import cgroup
from pytest_nsbox.policy import usage
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.spec import Spec
from tests.kernel.cgroups import HOLD_MEMORY, SPIN, groups_below, limit, node_of, opened, parent, python, run, started

pytestmark = pytest.mark.needs("root", "cgroup:memory", "cgroup:pids", "cgroup:cpu")

MIB = 1024 * 1024


def test_a_process_that_writes_zero_to_the_attach_descriptors_is_in_the_node():
    with opened() as session, node_of(session, Spec()) as node, started(node, "sleep", "600") as process:
        assert node.pids() == [process.pid]
        assert node.kill() is True
        assert process.wait(10) == -signal.SIGKILL


def test_a_process_above_its_memory_limit_is_killed_and_counted():
    with opened() as session, node_of(session, Spec(mem=32 * MIB)) as node:
        assert run(node, HOLD_MEMORY, str(MIB))[0] == 0
        assert usage.parse(node.read())["oom_kills"] == 0
        assert run(node, HOLD_MEMORY, str(200 * MIB))[0] == -signal.SIGKILL
        used = usage.parse(node.read())
        assert used["oom_kills"] == 1
        assert 30 * MIB < used["memory_peak_bytes"] <= 32 * MIB
        assert usage.hits(node.read())["mem"] == 1


def test_the_pids_limit_stops_a_fork_and_counts_the_attempt():
    code = """
import os, time
children = 0
try:
    while children < 50:
        if os.fork() == 0:
            time.sleep(600)
        children += 1
except BlockingIOError:
    print(children)
"""
    with opened() as session, node_of(session, Spec(pids=5)) as node:
        with started(node, *python(code)) as process:
            assert line_of(process) == "4\n"
            while node.kill():
                time.sleep(0.01)
        assert usage.hits(node.read())["pids"] >= 1
        if "pids.peak" in node.read():
            assert usage.parse(node.read())["pids_peak"] == 5


def line_of(process):
    return process.stdout.readline()


def test_the_cpu_quota_throttles():
    with opened() as session, node_of(session, Spec(cpu=0.1, cpu_period=20_000)) as node:
        begin = time.monotonic()
        assert run(node, SPIN, "1.5")[0] == 0
        wall = time.monotonic() - begin
        used = usage.parse(node.read())
        # Of one CPU a tenth (so little is soon used up, also where others want it), and what a period's start grants.
        assert used["cpu_s"] < 0.45 * wall
        assert used["cpu_nr_throttled"] > 5
        assert used["cpu_throttled_s"] > 0.02


def test_cpu_time_of_processes_that_have_ended_is_counted():
    with opened() as session, node_of(session, Spec()) as node:
        assert run(node, SPIN, "0.5")[0] == 0
        assert run(node, SPIN, "0.5")[0] == 0
        assert usage.parse(node.read())["cpu_s"] > 0.1


def test_the_owner_makes_groups_inside_and_cannot_change_a_limit(tmp_path):
    uid = 65534
    with opened() as session, node_of(session, Spec(mem=64 * MIB, pids=20), owner=uid) as node:
        for _, path in node.views:
            as_user(uid, f"mkdir {path}/inner && rmdir {path}/inner")
        limits = [f"{path}/{file}" for _, path in node.views for file in os.listdir(path) if file in LIMITS]
        assert len(limits) == 2
        for file in limits:
            assert "Permission denied" in as_user(uid, f"cat {file} > /dev/null && echo 1 > {file}", fails=True)


LIMITS = {"memory.limit_in_bytes", "memory.max", "pids.max"}


def as_user(uid, command, *, fails=False):
    done = subprocess.run(
        ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "sh", "-c", command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) is fails, done.stderr
    return done.stderr


def test_removal_kills_what_is_left_in_nested_groups_too():
    with opened() as session, ExitStack() as stack:
        node = session.make("box", (), None)
        processes = [stack.enter_context(started(node, "sleep", "600")) for _ in range(3)]
        for _, path in node.views:
            os.makedirs(f"{path}/one/two")
            with open(f"{path}/one/two/cgroup.procs", "w") as file:
                file.write(str(processes[0].pid))
        assert len(node.pids()) == 3
        node.remove()
        assert [process.wait(10) for process in processes] == [-signal.SIGKILL] * 3
        assert not any(os.path.exists(path) for _, path in node.views)


def test_removal_of_what_is_gone_already_succeeds_and_the_descriptors_are_closed():
    with opened() as session:
        before = os.listdir("/proc/self/fd")
        node = session.make("box", (), None)
        for _, path in node.views:
            os.rmdir(path)
        node.remove()
        node.remove()
        assert node.attach == ()
        assert node.read() == {}
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_process_that_forks_while_it_is_killed_leaves_nothing():
    code = """
import os
print("up", flush=True)
while True:
    if os.fork():
        os._exit(0)
"""
    with opened() as session, node_of(session, Spec(pids=50)) as node:
        with started(node, *python(code)) as process:
            assert line_of(process) == "up\n"
        node.remove()
        assert node.pids() == []


def test_events_of_a_nested_group_count_for_the_box():
    with opened() as session, node_of(session, Spec(mem=32 * MIB)) as node:
        memory = next(path for view, path in node.views if view in {"memory", ""})
        os.mkdir(f"{memory}/inner")
        code = f"open('{memory}/inner/cgroup.procs', 'w').write('0')\n" + HOLD_MEMORY
        # Write access to the host's cgroup files is what the test, and no box, has.
        assert run(node, code, str(200 * MIB))[0] == -signal.SIGKILL
        assert usage.parse(node.read())["oom_kills"] == 1


def test_a_limit_of_a_missing_controller_says_so():
    with opened() as session:
        with pytest.raises(BoxFailed) as caught:
            session.make("box", [limit("rdma", "rdma.max", "0")], None)
        assert str(caught.value).startswith("the cgroup controller rdma cannot be used: ")


@pytest.mark.parametrize(
    ("values", "files"),
    [
        ({"cpu": 0.001}, {"cpu.cfs_quota_us": 1_000, "cpu.cfs_period_us": 1_000_000, "cpu.max": "1000 1000000"}),
        ({"cpu": 0.25, "cpu_period": 1_000}, {"cpu.cfs_quota_us": 1_000, "cpu.max": "1000 4000"}),
        ({"cpu": 1, "cpu_period": 1_000}, {"cpu.cfs_quota_us": 1_000, "cpu.max": "1000 1000"}),
        ({"cpu": 64, "cpu_period": 1_000_000}, {"cpu.cfs_quota_us": 64_000_000, "cpu.max": "64000000 1000000"}),
        ({"cpu_shares": 2}, {"cpu.shares": 2, "cpu.weight": 1}),
        ({"cpu_shares": 1024}, {"cpu.shares": 1024, "cpu.weight": 39}),
        ({"cpu_shares": 262_144}, {"cpu.shares": 262_144, "cpu.weight": 10_000}),
    ],
)
def test_the_kernel_takes_quotas_periods_and_shares_at_their_edges(values, files):
    with opened() as session, node_of(session, Spec(**values)) as node:
        found = {}
        for _, path in node.views:
            for file in files:
                if os.path.exists(f"{path}/{file}"):
                    with open(f"{path}/{file}") as opened_file:
                        found[file] = opened_file.read().strip()
        assert found
        assert found == {file: str(value) for file, value in files.items() if file in found}


def test_a_limit_that_the_kernel_refuses_names_the_file_and_leaves_no_group():
    with opened() as session:
        with pytest.raises(KernelError, match=r"^write 'many' to /.*/unit-?.*/pids\.max: Invalid argument$|pids\.max"):
            session.make("box", [limit("pids", "pids.max", "many")], None)
        assert not [path for path in groups_below("nsbox-unit") if path.endswith("/box")]


def test_a_file_that_the_kernel_lacks_is_an_error_unless_the_limit_has_a_fallback():
    with opened() as session:
        with pytest.raises(BoxFailed, match=r"^the kernel has no /.*/pids\.wishes: it is not built into this kernel$"):
            session.make("box", [limit("pids", "pids.wishes", "1")], None)
        instead = [limit("pids", "pids.max", "7")]
        node = session.make("box", [limit("pids", "pids.wishes", "1", instead)], None)
        path = next(path for view, path in node.views if view in {"pids", ""})
        with open(f"{path}/pids.max") as file:
            assert file.read() == "7\n"
        node.remove()
        session.make("box", [limit("pids", "pids.wishes", "1", [])], None).remove()


def test_two_boxes_of_one_name_are_an_error_and_the_first_lives_on():
    with opened() as session, node_of(session, Spec()) as node:
        with pytest.raises(KernelError, match=r"^mkdir /.*/box: File exists$"):
            session.make("box", (), None)
        assert run(node, "print(1)") == (0, "1\n")


def test_closing_a_session_removes_its_boxes_and_the_parents_that_it_made():
    below = f"{parent() or '/nsbox-test'}/outer/inner"
    session = cgroup.open_session(below, "unit")
    node = session.make("box", (), None)
    with started(node, "sleep", "600") as process:
        session.close()
        assert process.wait(10) == -signal.SIGKILL
    node.close_fds()
    assert groups_below(f"{parent()}/outer" if parent() else "nsbox-test") == []


def test_the_last_of_several_sessions_removes_the_parent_and_an_older_parent_stays():
    old = f"{parent() or ''}/old"
    places = [f"{mount.point}{old}" for mount in cgroup.find_mounts() if mount.version == 1 or VERSION_2]
    for place in places:
        os.makedirs(place)
    try:
        first = cgroup.open_session(f"{old}/new", "first")
        second = cgroup.open_session(f"{old}/new", "second")
        assert cgroup.leftovers(f"{old}/new") == {"first", "second"}
        first.close()
        assert cgroup.leftovers(f"{old}/new") == {"second"}
        second.close()
        assert groups_below(f"{old}/new") == []
    finally:
        for place in places:
            assert os.path.isdir(place)
            os.removedirs(place) if parent() else os.rmdir(place)


VERSION_2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")


def test_a_sweep_kills_and_removes_a_dead_session_and_leaves_the_living():
    with opened("alive") as session, node_of(session, Spec()) as node:
        dead = cgroup.open_session(parent(), "dead")
        left = dead.make("box", (), None)
        with started(left, "sleep", "600") as process:
            left.close_fds()
            assert cgroup.leftovers(parent()) >= {"alive", "dead"}
            cgroup.sweep(parent(), ["dead", "never-there"])
            assert process.wait(10) == -signal.SIGKILL
        assert "dead" not in cgroup.leftovers(parent())
        assert run(node, "print(1)") == (0, "1\n")


def test_a_sweep_removes_the_parent_that_the_dead_session_made():
    below = f"{parent() or ''}/swept"
    cgroup.open_session(below, "dead").make("box", (), None).close_fds()
    cgroup.sweep(below, ["dead"])
    assert groups_below("/swept") == []


def test_sessions_that_come_and_go_at_once_do_not_disturb_each_other():
    below = f"{parent() or ''}/busy"
    errors: list[BaseException] = []

    def come_and_go(number: int) -> None:
        try:
            for turn in range(15):
                session = cgroup.open_session(below, f"{number}-{turn}")
                session.make("box", (), None).remove()
                session.close()
        except BaseException as error:  # noqa: BLE001 - a thread cannot raise into the test
            errors.append(error)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert groups_below("/busy") == []


@pytest.mark.needs("ordinary user")
def test_without_rights_a_box_without_limits_is_made_and_a_limit_says_why_not():
    code = """
import os, sys
sys.path[:] = eval(sys.argv[1])
from pytest_nsbox.kernel import cgroup
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.limits import Write
# Only now: the interpreter may lie where an ordinary user cannot read.
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
session = cgroup.open_session("/nsbox-nobody", "unit")
node = session.make("box", (), None)
print(node.attach, node.read())
try:
    session.make("box", [Write("memory", "memory.max", "1")], None)
except BoxFailed as error:
    print(error)
node.remove()
session.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, repr(sys.path)], capture_output=True, text=True, check=True, cwd="/"
    )
    line, reason = done.stdout.splitlines()
    assert line == "() {}"
    assert reason.startswith("the cgroup controller memory cannot be used: mkdir /sys/fs/cgroup")
    # Of v1, of v2, and where no command hands groups over.
    fixes = (
        "Permission denied; sudo bash -c 'mkdir -p /sys/fs/cgroup/",
        "Permission denied; sudo sh -c 'cd /sys/fs/cgroup ",
    )
    assert any(fix in reason for fix in (*fixes, "run as root"))


def test_a_parent_with_dots_is_refused():
    with pytest.raises(KernelError, match=r"^use cgroup parent /a/\.\./b: Invalid argument$"):
        cgroup.open_session("/a/../b", "unit")
