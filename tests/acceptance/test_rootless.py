"""Boxes of an ordinary user to whom nothing was granted, and of one who was given groups."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_nsbox.kernel import mount
from tests.acceptance.comparing import ZOO
from tests.capabilities import cgroup_version, require_cgroup_version, times
from tests.filters import refuse
from tests.leftovers import PARENT, cgroup_mounts
from tests.rootfs import rootfs
from tests.warden.test_host_filesystems import bind, mount_at, with_own_mounts

pytestmark = pytest.mark.needs("root", "overlay", "user namespace")

USER = 23_456
# In a mount namespace of the test's own: the interpreter and its packages may lie where only root may go.
PLACE = Path("/mnt/nsbox-rootless")
PATIENCE = times(1, in_vm=8)  # seconds: a test's set-up has to end before its timeout


class Outcome(NamedTuple):
    text: str
    status: int
    files: dict[str, str]


def as_user(files: dict[str, str | Path], *options: str, tmpdir: str, prepare: Callable[[], object] = int) -> Outcome:
    """Run pytest as an ordinary user on `files`, which are put into its working directory; `prepare` runs before it."""

    def play() -> Outcome:
        mount_at(Path("/mnt"))
        python, suite = PLACE / "python", PLACE / "suite"
        packages = [Path(path) for path in dict.fromkeys(sys.path) if path.endswith("-packages")]
        packages.append(Path(__file__).parents[2])
        places = [(Path(sys.base_prefix), python), *((p, PLACE / f"packages-{n}") for n, p in enumerate(packages))]
        for source, place in places:
            place.mkdir(parents=True)
            bind(source, place)
        suite.mkdir()
        for name, content in files.items():
            (suite / name).parent.mkdir(exist_ok=True)
            text = content.read_text(encoding="utf-8") if isinstance(content, Path) else content
            (suite / name).write_text(text, encoding="utf-8")
        for path in (suite, *suite.rglob("*")):
            os.chown(path, USER, USER)
        prepare()
        environment = {
            "PATH": os.defpath,
            "TMPDIR": tmpdir,
            # The interpreter was told to find it where only root may go.
            "LD_LIBRARY_PATH": str(python / "lib"),
            "PYTHONPATH": ":".join(str(place) for _, place in places[1:]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATIENCE": str(PATIENCE),
            "USER_ID": str(USER),
            # With its images, on the disk too.
            "XDG_CACHE_HOME": f"{tmpdir}/cache",
            "GROUP_ID": str(USER),
        }
        interpreter = str(python / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}")
        command = [interpreter, "-m", "pytest", "-p", "no:cacheprovider", "--basetemp=base", *options]
        done = subprocess.run(
            command,
            cwd=suite,
            env=environment,
            user=USER,
            group=USER,
            extra_groups=[],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        found = [path for path in suite.rglob("*") if path.is_file() and path.parts[len(suite.parts)] != "cache"]
        made = {str(path.relative_to(suite)): path.read_text() for path in found}
        return Outcome(done.stdout, done.returncode, made)

    outcome: Outcome = Outcome(*with_own_mounts(lambda: tuple(play())))
    return outcome


def test_boxes_of_an_ordinary_user(tmpdir_for_all: str) -> None:
    files: dict[str, str | Path] = {
        "test_rootless.py": ZOO / "rootless.py",
        "given": "given",
        "sources/file": "",
        "shared/file": "",
        "inner/test_inner.py": "def test_writes(): open('inner/made', 'w').write('made')\n",
    }
    outcome = as_user(files, "--sandbox-all", "-rfE", "--tb=short", "test_rootless.py", tmpdir=tmpdir_for_all)

    text = outcome.text
    assert "3 failed, 14 passed, 2 errors" in text, text
    assert f"timed out after {PATIENCE}.0 s (sandbox timeout)" in text
    assert "killed by SIGSEGV" in text
    assert "exited with status 3 before the test ended" in text
    assert "privileged: an ordinary user has no rights to leave to a box: run pytest as root" in text
    if cgroup_version() == 1:
        assert "the cgroup controller memory cannot be used: mkdir " in text
        assert "sudo bash -c 'mkdir -p /sys/fs/cgroup/" in text
        assert f"then pytest --sandbox-cgroup-parent=/nsbox-{USER}" in text
    assert outcome.files["sandbox-artifacts/test_rootless.py::test_dies_by_time/left"] == "left"
    assert outcome.files["shared/made"] == "made"
    assert outcome.files["given"] == "given"
    assert {"made", "inner/made", "sources/made"}.isdisjoint(outcome.files)


@pytest.mark.needs("busybox root")
def test_containers_of_an_ordinary_user(tmpdir_for_all: str) -> None:
    source = rootfs("busybox")

    def prepare() -> None:
        root = PLACE / "root"
        shutil.copytree(source, root, symlinks=True)
        for path in (root, *root.rglob("*")):
            os.chown(path, USER, USER, follow_symlinks=False)

    files: dict[str, str | Path] = {"test_containers.py": ZOO / "rootless_containers.py"}
    outcome = as_user(files, "-rfE", "--tb=short", tmpdir=tmpdir_for_all, prepare=prepare)
    assert "4 passed" in outcome.text, outcome.text


LIMITED = """
import os
import subprocess
import pytest

@pytest.mark.sandbox(mem="64M", proc="limits")
def test_memory():
    if open("/proc/meminfo").readline().split()[1] == "65536" and os.sysconf("SC_PHYS_PAGES") == 16384:
        bytearray(1 << 28)

@pytest.mark.sandbox(pids=10, cpu=0.5)
def test_processes():
    with pytest.raises(OSError):
        [subprocess.Popen(["sleep", "100"]) for _ in range(20)]
"""


@pytest.mark.needs("cgroup:memory", "cgroup:pids")
def test_limits_work_where_the_user_was_given_groups(tmpdir_for_all: str) -> None:
    if cgroup_version() != 1:
        pytest.skip("on v2 the user's own group must be delegated, which takes a manager")
    above = (os.environ.get(PARENT) or "").strip("/")
    name = "/".join(part for part in (above, f"user-{os.getpid()}") if part)
    wanted = {"cpu", "cpuacct", "memory", "pids"}
    groups = [Path(point, name) for point, _, options in cgroup_mounts() if wanted & set(options)]
    made = []
    try:
        for group in groups:
            for directory in (*reversed([p for p in group.parents if not p.exists()]), group):
                directory.mkdir()
                made.append(directory)
            for path in (group, *group.iterdir()):
                os.chown(path, USER, USER)
        options = (f"--sandbox-cgroup-parent=/{name}", "--tb=short", "test_limits.py")
        outcome = as_user({"test_limits.py": LIMITED}, *options, tmpdir=tmpdir_for_all)
    finally:
        for directory in reversed(made):
            # Another run on this machine may have moved into what is above ours.
            with contextlib.nullcontext() if directory in groups else contextlib.suppress(OSError):
                directory.rmdir()

    assert "1 failed, 1 passed" in outcome.text, outcome.text
    assert "OOM-killed: memory limit 64.0 MiB, peak 64.0 MiB" in outcome.text


@pytest.mark.needs("cgroup:memory", "cgroup:pids")
def test_the_command_of_the_error_delegates_a_group_of_v2(tmpdir_for_all: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_cgroup_version(2)
    monkeypatch.delenv(PARENT)
    files: dict[str, str | Path] = {"test_limits.py": LIMITED}
    refused = as_user(files, "--tb=short", "test_limits.py", tmpdir=tmpdir_for_all)
    assert "2 errors" in refused.text, refused.text
    found = re.search(
        r"mkdir .*/nsbox-\w+: Permission denied; sudo (sh -c '.*'), then pytest in the same shell", refused.text
    )
    assert found, refused.text

    def delegate() -> None:
        # In the command the shell says who it is, as $$; here that is us.
        command = found[1].replace("'$$'", str(os.getpid()))
        assert f">nsbox-{USER}/cgroup.procs" in command
        subprocess.run(["sh", "-c", command], check=True)

    group = Path("/sys/fs/cgroup", f"nsbox-{USER}")
    try:
        outcome = as_user(
            files, "--sandbox-all", "--tb=short", "test_limits.py", tmpdir=tmpdir_for_all, prepare=delegate
        )
        left = [path.name for path in group.iterdir() if path.is_dir()]
    finally:
        group.rmdir()

    assert "sandbox: every test in a box, rootless" in outcome.text
    assert "sandbox: cgroup v2 (cgroupfs); on: cpu, cpu_shares, mem, swap, pids" in outcome.text
    assert "1 failed, 1 passed" in outcome.text, outcome.text
    assert "OOM-killed: memory limit 64.0 MiB, peak 64.0 MiB" in outcome.text
    assert left == []


def test_a_proc_that_hides_the_processes_of_others_is_no_obstacle(tmpdir_for_all: str) -> None:
    suite = """
import os, subprocess, pytest

def test_sees_itself(sandbox):
    assert os.getpid() == 2
    assert "/mnt" in open("/proc/self/mountinfo").read()
    assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3

@pytest.mark.sandbox(net=False, timeout="20s", tmpfs=["/srv:1M"])
def test_has_its_own():
    assert os.listdir("/sys/class/net") == ["lo"]
"""

    def hide() -> None:
        fd = mount.new_mount("proc", (("hidepid", "invisible"),))
        mount.attach(fd, "/proc")
        os.close(fd)

    outcome = as_user({"test_hidden.py": suite}, "--sandbox-all", tmpdir=tmpdir_for_all, prepare=hide)
    assert "2 passed" in outcome.text, outcome.text


@pytest.mark.needs("32-bit system calls")  # so this is an x86
def test_what_apparmor_does_to_user_namespaces_on_ubuntu(tmpdir_for_all: str) -> None:
    """A namespace is granted, and the powers in it are missing. No other kernel has the sysctl."""

    def restrict() -> None:
        mount_at(Path("/proc/sys/kernel"))
        Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").write_text("1\n")
        # sethostname, mount, open_tree, move_mount, fsopen, fsconfig
        refuse(dict.fromkeys((170, 165, 428, 429, 430, 431), errno.EPERM))

    asked = as_user({}, "--sandbox-doctor", tmpdir=tmpdir_for_all, prepare=restrict)
    assert asked.status == 1
    restricted = "(kernel.apparmor_restrict_unprivileged_userns is 1: AppArmor restricts user namespaces)"
    assert f"sethostname in a user namespace: Operation not permitted {restricted}" in asked.text, asked.text
    assert "fix: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or run pytest as root" in asked.text

    tried = as_user({"test_a.py": "def test_a(): pass\n"}, "--sandbox-all", tmpdir=tmpdir_for_all, prepare=restrict)
    assert "1 error" in tried.text, tried.text
    assert "Operation not permitted; pytest --sandbox-doctor tells the fix" in tried.text


@pytest.mark.needs("program:newuidmap", "program:newgidmap")
def test_ranges_of_ids_are_used_where_they_are_granted(tmpdir_for_all: str) -> None:
    suite = """
import os
import pytest

@pytest.mark.sandbox(user="root")
def test_root_gives_files_away():
    open("/tmp/file", "w").close()
    os.chown("/tmp/file", 1234, 5678)
    assert os.stat("/tmp/file").st_uid == 1234

def test_the_user_is_who_it_is():
    assert os.getuid() == 23456
    assert open("/proc/self/uid_map").read().split()[:3] == ["23456", "23456", "1"]
"""

    def grant() -> None:
        # newuidmap knows only users who have an entry.
        passwd = Path("/etc/passwd").read_text(encoding="utf-8") + f"nsbox-user:x:{USER}:{USER}::/:/bin/sh\n"
        given = {"subuid": f"{USER}:3000000:65536\n", "subgid": f"{USER}:3000000:65536\n", "passwd": passwd}
        for name, text in given.items():
            Path(f"/mnt/{name}").write_text(text, encoding="utf-8")
            bind(Path(f"/mnt/{name}"), Path(f"/etc/{name}"))

    if not (Path("/etc/subuid").exists() and Path("/etc/subgid").exists()):
        pytest.skip("no /etc/subuid and /etc/subgid to mount over")
    outcome = as_user({"test_ids.py": suite}, "--sandbox-all", tmpdir=tmpdir_for_all, prepare=grant)

    assert "2 passed" in outcome.text, outcome.text
