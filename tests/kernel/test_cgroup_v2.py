"""What only v2 has: controllers that are passed on, groups with processes that cannot, delegation. Run by tests/vm."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_nsbox.kernel import cgroup, cgroup_tree
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.limits import cgroup_writes
from pytest_nsbox.policy.spec import Spec
from tests.capabilities import require_cgroup_version
from tests.kernel.cgroups import limit, node_of, opened, python, run, started

pytestmark = pytest.mark.needs("root", "cgroup:memory", "cgroup:pids", "cgroup:cpu")

ROOT = Path("/sys/fs/cgroup")
MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def version() -> None:
    require_cgroup_version(2)


@pytest.fixture
def group() -> Iterator[Path]:
    """A group below the root that has every controller to pass on."""
    ROOT.joinpath("cgroup.subtree_control").write_text("+cpu +memory +pids +io")
    path = ROOT / f"given-{os.getpid()}"
    path.mkdir()
    yield path
    cgroup_tree.Group(str(path)).remove()


SESSION = """
import os, sys
sys.path[:] = eval(sys.argv[1])
from pytest_nsbox.kernel import cgroup
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.limits import Write
def own():
    return open("/proc/self/cgroup").read().strip().rpartition("::")[2]
"""


def in_group(group: Path, code: str, *wrapper: str) -> list[str]:
    """The lines that Python code prints, with SESSION before it, run as a process of `group`."""

    def enter() -> None:
        group.joinpath("cgroup.procs").write_text("0")

    done = subprocess.run(
        [*wrapper, sys.executable, "-u", "-c", SESSION + code, repr(sys.path)],
        preexec_fn=enter,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


LIFE = """
session = cgroup.open_session(None, "unit", frozenset({"cpu"}))
print(sorted(session.controllers))
node = session.make("box", [Write("memory", "memory.max", str(64 << 20))], None)
if os.fork() == 0:
    os.write(node.attach[0], b"0")
    print(own(), flush=True)
    os._exit(0)
os.wait()
print(own())
node.remove()
session.close()
print(own())
"""


def test_a_process_in_a_delegated_group_moves_into_a_leaf_and_back(group):
    os.setxattr(group, "user.delegate", b"1")
    assert in_group(group, LIFE) == [
        "['cpu', 'io', 'memory', 'pids']",
        f"/{group.name}/nsbox-unit/box",
        f"/{group.name}/nsbox.host",
        f"/{group.name}",
    ]
    assert group.joinpath("cgroup.subtree_control").read_text().strip() == ""
    assert [path for path in group.iterdir() if path.is_dir()] == []


def test_the_root_of_a_cgroup_namespace_counts_as_delegated(group):
    lines = in_group(group, LIFE, "unshare", "--cgroup", "--mount", "sh", "-c", REMOUNT, "-")
    assert lines[1:] == ["/nsbox-unit/box", "/nsbox.host", "/"]
    assert [path for path in group.iterdir() if path.is_dir()] == []


def test_a_given_parent_in_a_cgroup_namespace_makes_room_as_well(group):
    life = LIFE.replace("open_session(None", "open_session('/a/b'")
    lines = in_group(group, life, "unshare", "--cgroup", "--mount", "sh", "-c", REMOUNT, "-")
    assert lines[1:] == ["/a/b/nsbox-unit/box", "/nsbox.host", "/"]
    assert [path for path in group.iterdir() if path.is_dir()] == []


REMOUNT = 'umount /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'


def test_processes_of_a_group_that_is_not_delegated_stay_and_a_limit_says_why(group):
    code = """
session = cgroup.open_session(None, "unit")
node = session.make("box", (), None)
print(sorted(node.read())[0], own())
try:
    session.make("limited", [Write("memory", "memory.max", "1")], None)
except BoxFailed as error:
    print(error)
node.remove()
session.close()
"""
    first, reason = in_group(group, code)
    assert first == f"cpu.stat /{group.name}"
    assert reason == (
        f"the cgroup controller memory cannot be used: write '+memory' to {group}/cgroup.subtree_control: "
        "Device or resource busy; processes live in that group, and it is not delegated: "
        "systemd-run --user --scope -p Delegate=yes pytest …, or, as root, --sandbox-cgroup-parent=/nsbox"
    )


def test_several_sessions_share_the_leaf_and_the_last_one_takes_it_away(group):
    os.setxattr(group, "user.delegate", b"1")
    code = """
first = cgroup.open_session(None, "first")
second = cgroup.open_session(None, "second")
print(own(), sorted(cgroup.leftovers(None)))
first.close()
print(own(), sorted(cgroup.leftovers(None)))
second.close()
print(own())
"""
    assert in_group(group, code) == [
        f"/{group.name}/nsbox.host ['first', 'second']",
        f"/{group.name}/nsbox.host ['second']",
        f"/{group.name}",
    ]


def test_a_sweep_finds_dead_sessions_from_inside_the_leaf(group):
    os.setxattr(group, "user.delegate", b"1")
    code = """
dead = cgroup.open_session(None, "dead")
dead.make("box", (), None)
cgroup.sweep(None, ["dead"])
print(cgroup.leftovers(None))
cgroup.open_session(None, "next").close()
print(own())
"""
    assert in_group(group, code) == ["set()", f"/{group.name}"]


@pytest.mark.needs("ordinary user")
def test_an_ordinary_user_limits_memory_in_a_group_of_its_own(group):
    uid = 65534
    for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(group / name, uid, uid)
    code = f"os.setgroups([]); os.setgid({uid}); os.setuid({uid})\n" + LIFE.replace(
        "node.remove()", "print(os.listdir(node.views[0][1]) != [])\nnode.remove()"
    )
    assert in_group(group, code)[1:] == [
        f"/{group.name}/nsbox-unit/box",
        f"/{group.name}/nsbox.host",
        "True",
        f"/{group.name}",
    ]


def test_a_given_parent_needs_no_move():
    own = Path("/proc/self/cgroup").read_text()
    with opened() as session, node_of(session, Spec(mem=64 * MIB, pids=9, cpu=0.5)) as node:
        assert Path("/proc/self/cgroup").read_text() == own
        path = Path(node.views[0][1])
        assert path.joinpath("memory.max").read_text() == f"{64 * MIB}\n"
        assert path.joinpath("pids.max").read_text() == "9\n"
        assert path.joinpath("cpu.max").read_text() == "50000 100000\n"
        assert node.views == (("", str(path)),)


def test_a_controller_is_passed_on_when_the_first_box_needs_it():
    with opened() as session:
        session.make("plain", (), None).remove()
        with node_of(session, Spec(cpu_shares=512)) as node:
            assert Path(node.views[0][1], "cpu.weight").read_text() == "20\n"


def test_the_directory_descriptor_names_the_box_for_clone3():
    with opened() as session, node_of(session, Spec()) as node:
        fd = node.open_directory()
        assert fd is not None
        try:
            assert os.readlink(f"/proc/self/fd/{fd}") == node.views[0][1]
        finally:
            os.close(fd)


def test_counters_are_those_of_this_kernel_and_none_is_guessed():
    with opened() as session, node_of(session, Spec(cpu=0.5)) as node:
        assert run(node, "print(1)")[0] == 0
        counters = node.read()
        assert {"cpu.stat", "memory.peak", "memory.events", "memory.max", "pids.peak", "pids.events"} <= counters.keys()
        assert "nr_throttled" in counters["cpu.stat"]
        present = {name for name in ("cpu.pressure", "io.stat") if Path(node.views[0][1], name).exists()}
        assert present == {"cpu.pressure", "io.stat"} & counters.keys()


def test_without_cgroup_kill_processes_are_killed_one_by_one():
    class OldKernel(cgroup_tree.Files):
        def __init__(self) -> None:
            self.open = self._open  # type: ignore[assignment]

        def _open(self, path: str, flags: int) -> int:
            if path.endswith("/cgroup.kill"):
                raise OSError(errno.ENOENT, "no such file")
            return os.open(path, flags)

    with opened(files=OldKernel()) as session:
        node = session.make("box", cgroup_writes(Spec(), 2), None)
        with started(node, *python("import os, time; os.fork(); print('up'); time.sleep(600)")) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            node.remove()
            assert process.wait(10) == -9


def test_the_cpuset_controller_that_this_kernel_may_lack_is_named():
    available = ROOT.joinpath("cgroup.controllers").read_text().split()
    with opened() as session:
        if "cpuset" in available:
            session.make("box", [limit("cpuset", "cpuset.cpus", "0")], None).remove()
        else:
            with pytest.raises(BoxFailed, match=r"^the cgroup controller cpuset cannot be used: "):
                session.make("box", [limit("cpuset", "cpuset.cpus", "0")], None)


def test_leftovers_and_sweep_of_a_parent_that_is_not_there_do_nothing():
    assert cgroup.leftovers("/never/there") == set()
    cgroup.sweep("/never/there", ["dead"])
