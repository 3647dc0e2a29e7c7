"""What stands in the way of boxes, made for real where a machine lets us; the doctor names cause and fix."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.test_container_root import ENTER
from tests.leftovers import PARENT, cgroup_mounts

pytestmark = pytest.mark.needs("root", "overlay", "user namespace")

DOCTOR = "from pytest_nsbox.doctor import examine, tell; import sys; print(*tell(examine(*sys.argv[1:])), sep='\\n')"
# Docker's default profile, as far as boxes meet it: clone3 gets ENOSYS, so that the C library falls back to clone.
FILTERED = """
import platform
from tests.filters import refuse
assert platform.machine() == "x86_64"
answers = {272: 1, 308: 1, 165: 1, 155: 1, 428: 1, 429: 1, 430: 1, 435: 38}  # unshare setns mount pivot_root ... clone3
refuse(answers, no_new_privs=True)
"""


def doctor(*before: str, code: str = DOCTOR, parent: str | None = None, container: str = "") -> str:
    """The doctor's text in a process that is started by the command `before`."""
    environment = {**os.environ, "container": container} if container else dict(os.environ)
    command = [*before, sys.executable, "-c", code, *([parent] if parent else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def entry(text: str, name: str) -> str:
    """What is told of one capability: why, what is lost, and the fix."""
    lines = text.partition(f" {name}  ")[2].splitlines() or [""]
    more = itertools.takewhile(lambda line: line.startswith("          "), lines[1:])
    return "\n".join(line.strip() for line in (lines[0], *more))


@pytest.mark.needs("32-bit system calls")  # so this is an x86
def test_the_seccomp_profile_of_docker() -> None:
    drop = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    text = doctor(*drop, code=FILTERED + DOCTOR, container="docker")
    told = entry(text, "user namespaces")
    assert "unshare user,uts: Operation not permitted (the docker container forbids it)" in told, text
    assert "fix: docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined" in told
    assert "clone3 0x0: Function not implemented (the docker container forbids it)" in entry(text, "clone3")
    assert "under a seccomp filter" in text
    assert "Tests cannot run in boxes here" in text


def test_a_container_that_hides_parts_of_proc(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    hide = ("unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /proc/keys; exec "$@"', "sh")
    drop = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    told = entry(doctor(*hide, *drop, container="docker"), "fresh /proc")
    assert "Operation not permitted (the docker container hides parts of /proc)" in told
    assert "fix: docker run --security-opt systempaths=unconfined …, or --privileged" in told

    pytester.makepyfile("def test_one(): ...")
    pytest_ = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--sandbox-all", "--tb=short")
    result = pytester.run(*hide, *drop, *pytest_)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*mount proc /proc*: Operation not permitted; pytest --sandbox-doctor tells the fix"])


def test_a_machine_that_counts_no_user_namespaces() -> None:
    # The sysctl belongs to the user namespace that it is set in.
    script = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    told = entry(doctor("unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"), "user namespaces")
    assert "(user.max_user_namespaces is 0, or user namespaces are nested too deep)" in told
    assert "fix: sysctl -w user.max_user_namespaces=15000" in told


@pytest.mark.needs("cgroup:memory")
def test_control_groups_that_are_mounted_read_only() -> None:
    points = " ".join(point for point, _, _ in cgroup_mounts())
    script = f'for point in {points}; do mount -o remount,ro,bind "$point"; done; exec "$@"'
    told = entry(doctor("unshare", "--mount", "sh", "-c", script, "sh", parent=os.environ.get(PARENT)), "cgroup")
    assert "Read-only file system" in told, told
    assert "fix: mount it read-write: mount -o remount,rw, or docker run --privileged" in told


def kind_of(group: Path) -> str:
    """Of cgroup v2; "" in the others, and in the root of that one."""
    file = group / "cgroup.type"
    return file.read_text().strip() if file.exists() else ""


def door(group: Path) -> Path:
    """What a process enters the group by that has one thread."""
    return group / ("cgroup.threads" if kind_of(group) == "threaded" else "cgroup.procs")


@pytest.mark.needs("cgroup:memory")
def test_a_group_outside_the_own_cgroup_namespace() -> None:
    """The path in /proc/self/cgroup begins with `..` then."""
    above = (os.environ.get(PARENT) or "").strip("/")
    groups = [Path(point, above, f"outside-{os.getpid()}") for point, _, _ in cgroup_mounts()]
    made = [path for group in groups for path in (*reversed(group.parents), group) if not path.exists()]
    for path in made:
        path.mkdir()
        if "cpuset" in str(path):
            for file in ("cpuset.cpus", "cpuset.mems"):
                (path / file).write_text((path.parent / file).read_text())
        if kind_of(path) == "domain invalid":  # another session has made the one above a threaded one
            (path / "cgroup.type").write_text("threaded")
    try:
        inside = "; ".join(f"echo $$ >{door(group)}" for group in groups)
        outside = "; ".join(f"echo $$ >{door(group.parent)}" for group in groups)
        # The shell is exec'd into the new namespace: it is the group that it is in then.
        script = f'{inside}; exec unshare --cgroup sh -c \'{outside}; exec "$@"\' sh "$@"'
        told = entry(doctor("sh", "-c", script, "sh"), "cgroup")
    finally:
        for path in reversed(made):
            path.rmdir()
    assert "the own group of this process is not below a cgroup mount" in told, told
    assert "fix: enter a new cgroup namespace, or name a group: --sandbox-cgroup-parent=/nsbox" in told


def test_a_root_of_layers_as_in_a_container(tmp_path: Path) -> None:
    text = doctor("unshare", "--mount", "sh", "-c", ENTER, "sh", str(tmp_path))
    assert "Storage Driver: overlay (scratch in memory)\n Backing Filesystem: overlay\n" in text
    told = entry(text, "scratch on disk")
    assert "cannot carry an overlay's upper layer)\nwithout it: what tests write lies in memory" in told, text
    assert "fix: TMPDIR=/a/directory/on/ext4/or/xfs" in told
    told = entry(text, "idmapped overlay layers")
    assert "mount_setattr idmap /: Invalid argument (the root file system cannot be idmapped)" in told
    assert "fix: a root file system that can: ext4, xfs, btrfs" in told
    verdict = text.splitlines()[-1]
    assert verdict.startswith("Tests can run in boxes here, without ")
    assert "scratch on disk, idmapped overlay layers" in verdict


# The command is a child of this pid 1, which waits for that child alone.
NO_OBSTACLES = """
import os, subprocess, sys
from pytest_nsbox.kernel import mount
mount.make_private("/")
mount.attach(mount.new_mount("proc", (("hidepid", "invisible"),)), "/proc")
assert os.getpid() == 1
if os.path.exists("/dev/fuse"):
    mount.attach(mount.clone_tree("/dev/null"), "/dev/fuse")
sys.exit(subprocess.run(sys.argv[1:]).returncode)
"""
SUITE = """
import os, subprocess
import pytest

def test_leaves_a_process():
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    subprocess.run(["sh", "-c", "sleep 600 & exit 0"])

def test_finds_none_of_it():
    assert [pid for pid in os.listdir("/proc") if pid.isdigit()] == ["1", "2"]

@pytest.mark.sandbox(mem="64M", net=False)
def test_meets_its_limit():
    bytearray(1 << 28)

def test_starts_a_container(nsbox):
    assert nsbox.run(["sh", "-c", "echo $$"]).stdout == "2\\n"
"""


@pytest.mark.needs("cgroup:memory")
def test_no_obstacles_are_hidden_processes_a_first_process_that_reaps_none_and_a_machine_without_fuse(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(SUITE)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    enter = ("unshare", "--mount", "--pid", "--fork", "--kill-child", sys.executable, "-c", NO_OBSTACLES)
    result = pytester.run(*enter, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--sandbox-all")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["OOM-killed: memory limit 64.0 MiB, peak 64.0 MiB"])
