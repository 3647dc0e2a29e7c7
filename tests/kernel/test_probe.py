"""The probe on the real kernel, and with doors that fail: each failing call is named in what it takes away."""

from __future__ import annotations

import errno
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_nsbox.kernel import probe
from pytest_nsbox.kernel.probe import Probe, attempt
from pytest_nsbox.kernel.probe_doors import Doors
from pytest_nsbox.kernel.surroundings import find_container, look_around, read_sysctls
from pytest_nsbox.policy import capability as cap
from pytest_nsbox.policy.capability import Capability, Failure, Surroundings
from pytest_nsbox.policy.errors import KernelError
from tests.leftovers import PARENT

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

ROOT = Surroundings()
USER = Surroundings(uid=1000, sys_admin=False)


def failing(door: str, number: int, *, on: Callable[..., bool] = lambda *_: True) -> Doors:
    """Real doors, of which one fails with errno `number` where `on` says so of its arguments."""
    doors = Doors()
    real = getattr(doors, door)

    def fails(*arguments: object) -> object:
        if on(*arguments):
            raise KernelError(door, "", number)
        return real(*arguments)

    setattr(doors, door, fails)
    return doors


def parent() -> str | None:
    return os.environ.get(PARENT)


# --- attempts -------------------------------------------------------------------------------------------------------


def test_an_attempt_hands_back_what_its_function_returned():
    assert attempt(lambda: {"a": [1, "b", None]}) == {"a": [1, "b", None]}


def test_an_attempt_changes_nothing_in_the_caller():
    before = os.getcwd()
    assert attempt(lambda: os.chdir("/")) is None
    assert os.getcwd() == before


def test_a_kernel_error_becomes_a_failure_with_its_call_target_and_errno():
    def fails() -> None:
        raise KernelError("mount", "tmpfs /tmp", errno.EPERM)

    assert attempt(fails) == Failure("mount", "tmpfs /tmp", errno.EPERM)


def test_a_file_that_cannot_be_opened_is_a_failure_too():
    assert attempt(lambda: os.open("/nowhere/at/all", 0)) == Failure("open", "/nowhere/at/all", errno.ENOENT)


def test_a_try_that_is_killed_is_told_so():
    # What a seccomp filter with SECCOMP_RET_KILL does.
    failure = attempt(lambda: os.kill(os.getpid(), 31))
    assert str(failure) == "the try was killed by signal 31: Operation not permitted"


def test_a_try_that_hangs_is_killed(monkeypatch):
    monkeypatch.setattr(probe, "PATIENCE", 1)
    failure = attempt(lambda: time.sleep(60))
    assert str(failure) == "the try was killed by signal 14: Operation not permitted"


def test_a_bug_in_a_try_is_a_failure_and_no_success():
    assert isinstance(attempt(lambda: 1 // 0), Failure)


# --- the real kernel ------------------------------------------------------------------------------------------------


@pytest.mark.needs("root", "overlay", "user namespace", "time namespace", "cgroup:memory")
def test_a_machine_that_has_everything_is_found_to_have_everything():
    examination = Probe(look_around(), parent())
    found = examination.capabilities()
    names = [capability.name for capability in found]
    assert [str(capability) for capability in found if not capability.works] == []
    assert set(cap.ESSENTIAL) - {cap.LINUX, cap.BOX} <= set(names)
    assert {cap.NET, cap.TIME, cap.CGROUP, "cgroup memory", "cgroup pids", cap.SECCOMP} <= set(names)
    assert len(names) == len(set(names))
    assert examination.cgroup_version in (1, 2)


@pytest.mark.needs("ordinary user", "user namespace")
def test_an_ordinary_user_gets_namespaces_and_overlay_but_no_groups_of_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe, "PATIENCE", 60)  # this one try is all tries in one
    look_around()  # imports and codecs first: the interpreter may lie where the user cannot read
    importlib.import_module("pytest_nsbox.kernel.cgroup_delegation")  # which is imported where a refusal is explained

    def as_nobody() -> object:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        Path("/proc/self/comm").read_text(encoding="utf-8")
        around = look_around()
        found = Probe(around, "/nsbox-nobody").capabilities()
        return [[capability.name, capability.works, capability.why, capability.fix] for capability in found]

    result = attempt(as_nobody)  # type: ignore[arg-type]
    assert isinstance(result, list), result
    found = {entry[0]: Capability(*entry) for entry in result}
    groups = found.pop(cap.CGROUP)
    assert groups.works is False
    assert "Permission denied" in groups.why
    # Of v1, of v2, and where no command hands groups over.
    assert groups.fix.startswith(("sudo bash -c 'mkdir -p ", "sudo sh -c 'cd ")) or "run as root" in groups.fix
    assert cap.DISK_SCRATCH not in found
    assert cap.IDMAP not in found


@pytest.mark.needs("user namespace", "overlay")
def test_inside_a_user_namespace_the_root_overlay_is_not_even_tried():
    program = (
        f"import sys; sys.path.insert(0, {str(Path(probe.__file__).parents[2])!r}); "
        "from pytest_nsbox.kernel.probe import main; main()"
    )
    done = subprocess.run(
        ["unshare", "-Urmpf", "--mount-proc", sys.executable, "-I", "-S", "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    document = json.loads(done.stdout)
    assert document["around"]["initial_userns"] is False
    works = {entry["name"]: entry["works"] for entry in document["capabilities"]}
    assert cap.DISK_SCRATCH not in works
    assert works[cap.OVERLAY] is works[cap.PROC] is works[cap.USERNS] is True


# --- doors that fail ------------------------------------------------------------------------------------------------


def tried(name: str, doors: Doors, around: Surroundings | None = None) -> Capability:
    around = around or look_around()
    return cap.judge(name, as_failure(attempt(Probe(around, parent(), doors).tries()[name])), around)


def as_failure(result: object) -> Failure | None:
    return result if isinstance(result, Failure) else None


@pytest.mark.needs("root", "user namespace", "overlay")
@pytest.mark.parametrize(
    ("name", "doors", "why", "fix"),
    [
        (cap.USERNS, failing("unshare", errno.EPERM), "unshare: Operation not permitted", ""),
        (cap.USERNS, failing("write_proc", errno.EPERM), "write_proc: Operation not permitted", ""),
        (cap.MOUNT, failing("unshare", errno.EPERM), "unshare: Operation not permitted", ""),
        (cap.PID, failing("unshare", errno.EINVAL), "CONFIG_PID_NS", "a kernel with CONFIG_PID_NS=y"),
        (cap.UTS, failing("unshare", errno.ENOSPC), "user.max_uts_namespaces is", "sysctl -w user.max_uts_namespaces="),
        (cap.IPC, failing("unshare", errno.EINVAL), "CONFIG_IPC_NS", "a kernel with CONFIG_IPC_NS=y"),
        (cap.CGROUP_NS, failing("unshare", errno.EINVAL), "CONFIG_CGROUPS", "a kernel with CONFIG_CGROUPS=y"),
        (cap.NET, failing("unshare", errno.ENOSPC), "user.max_net_namespaces is", "sysctl -w user.max_net_namespaces="),
        (cap.NET, failing("loopback_up", errno.EPERM), "loopback_up: Operation not permitted", ""),
        pytest.param(
            cap.TIME,
            failing("set_clock_offsets", errno.EACCES),
            "set_clock_offsets: Permission denied",
            "",
            marks=pytest.mark.needs("time namespace"),
        ),
        (cap.CLONE3, failing("clone3", errno.ENOSYS), "clone3: Function not implemented", ""),
        (cap.PIDFD, failing("open_pidfd", errno.ENOSYS), "open_pidfd: Function not implemented", ""),
        (cap.PIDFD, failing("setns", errno.EINVAL), "setns: Invalid argument", ""),
        (cap.PROC, failing("mount", errno.EPERM, on=lambda *a: a[2] == "proc"), "mount: Operation not permitted", ""),
        (
            cap.OVERLAY,
            failing("mount", errno.ENODEV, on=lambda *a: a[2] == "overlay"),
            "no overlay",
            "modprobe overlay",
        ),
        (cap.DISK_SCRATCH, failing("mount", errno.EINVAL, on=lambda *a: a[2] == "overlay"), "cannot carry", "TMPDIR="),
        (cap.IDMAP, failing("idmapped_clone", errno.EINVAL), "cannot be idmapped", "ext4, xfs, btrfs"),
        (cap.IDMAP, failing("write_maps", errno.EPERM), "write_maps: Operation not permitted", ""),
        (cap.SECCOMP, failing("allow_all_filter", errno.EINVAL), "allow_all_filter: Invalid argument", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_failing_call_takes_its_capability_away_and_says_why(name, doors, why, fix):
    found = tried(name, doors)
    assert found.works is False
    assert why in found.why
    assert fix in found.fix


@pytest.mark.needs("root", "overlay")
def test_an_upper_layer_that_comes_up_read_only_is_no_success():
    def read_only(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
        Doors.mount(doors, source, target, kind, flags | (kind == "overlay"), data)  # 1 is MS_RDONLY

    doors = Doors()
    doors.mount = read_only  # type: ignore[method-assign]
    assert "Read-only file system" in tried(cap.DISK_SCRATCH, doors).why


def cgroups(doors: Doors) -> dict[str, Capability]:
    return {capability.name: capability for capability in Probe(look_around(), parent(), doors).cgroups()}


class FakeNode:
    def __init__(self, views: tuple[tuple[str, str], ...]) -> None:
        self.views = views

    def remove(self) -> None:
        pass


class FakeSession:
    """A session as kernel/cgroup.py opens it, with the parts that the probe looks at."""

    driver = "cgroupfs"

    def __init__(self, directory: Path, version: int, controllers: set[str], problems: dict[str, str]) -> None:
        self.version = version
        self.controllers = frozenset(controllers)
        self.problems = problems
        self.closed = False
        self.views = (("", str(directory)),) if controllers else ()

    def make(self, _box: str, _writes: object, _owner: object) -> FakeNode:
        return FakeNode(self.views)

    def close(self) -> None:
        self.closed = True


def with_session(session: FakeSession) -> Doors:
    doors = Doors()
    doors.open_session = lambda *_: session  # type: ignore[assignment]
    return doors


def test_without_any_hierarchy_the_fix_is_to_mount_one(tmp_path):
    problem = "no cgroup file system is mounted; mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    assert cgroups(with_session(FakeSession(tmp_path, 0, set(), {"": problem}))) == {
        cap.CGROUP: Capability(
            cap.CGROUP, False, "no cgroup file system is mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
        )
    }


def test_a_controller_that_cannot_be_used_is_missing_alone(tmp_path):
    problem = "write '+memory' to /sys/fs/cgroup/cgroup.subtree_control: Permission denied; Delegate=yes"
    (tmp_path / "memory.swap.max").touch()
    found = cgroups(with_session(FakeSession(tmp_path, 2, {"cpu", "pids"}, {"memory": problem})))
    assert found[cap.CGROUP].works
    assert found["cgroup cpu"].works
    assert found["cgroup memory"].fix == "Delegate=yes"
    assert found["cgroup memory"].why.endswith("Permission denied")
    assert "cgroup.controllers" in found["cgroup io"].why
    assert "Delegate=yes" in found["cgroup io"].fix
    assert cap.SWAP not in found


@pytest.mark.parametrize(
    ("version", "file"), [(1, "memory.memsw.limit_in_bytes"), (2, "memory.swap.max")], ids=["v1", "v2"]
)
def test_swap_accounting_shows_by_its_file(tmp_path, version, file):
    session = FakeSession(tmp_path, version, {"memory"}, {})
    assert cgroups(with_session(session))[cap.SWAP] == Capability(
        cap.SWAP, False, "the kernel does not account swap", "boot it with swapaccount=1"
    )
    (tmp_path / file).touch()
    assert cgroups(with_session(session))[cap.SWAP].works


def test_a_session_that_cannot_be_opened_at_all_is_told_with_its_call():
    found = cgroups(failing("open_session", errno.EROFS))
    assert found[cap.CGROUP].why.startswith("open_session: Read-only file system")


# --- surroundings ---------------------------------------------------------------------------------------------------


def test_the_container_is_named_by_what_its_manager_sets(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert find_container() == "kubernetes"


def test_only_sysctls_that_exist_are_told():
    for name, value in read_sysctls().items():
        assert Path("/proc/sys", *name.split(".")).read_text(encoding="utf-8").strip() == value


def test_the_surroundings_are_those_of_this_process():
    around = look_around()
    assert around.uid == os.geteuid()
    assert around.kernel == tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
