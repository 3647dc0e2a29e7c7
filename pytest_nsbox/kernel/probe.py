"""What this machine offers, tried and not guessed: each try runs in a short-lived child, so the caller stays as it is.

Run as a program (``python -I -S -c 'from pytest_nsbox.kernel.probe import main; main(None)'``) it prints JSON;
that is how pytest asks, since its own process is large and may have threads.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from signal import SIGKILL, alarm, pidfd_send_signal

from pytest_nsbox.kernel import libc, namespaces, systemd
from pytest_nsbox.kernel.cgroup_delegation import why_absent
from pytest_nsbox.kernel.probe_doors import Doors
from pytest_nsbox.kernel.surroundings import look_around
from pytest_nsbox.policy import capability as cap
from pytest_nsbox.policy.capability import Capability, Failure, Surroundings, judge
from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn, TypeAlias

    Json: TypeAlias = "bool | int | str | Sequence[Json] | dict[str, Json] | None"

PATIENCE = 10  # seconds; a try that hangs (a dead network file system below /) is killed and counts as failed
MS_REC_PRIVATE = 0x4000 | 0x40000
V1_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio")
V2_CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "io")


def attempt(function: Callable[[], Json]) -> Json | Failure:
    """Run ``function`` in a child and return what it returned (plain JSON), or the failure that it raised.

    Only KernelError and OSError are failures of the machine; any other exception ends the child and counts as EIO.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer(function, writer)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read()
    _, status = os.waitpid(pid, 0)
    if not text:
        code = os.waitstatus_to_exitcode(status)
        return Failure("the try", f"was killed by signal {-code}" if code < 0 else f"exited with {code}", errno.EPERM)
    answer = json.loads(text)
    if "failed" in answer:
        return Failure(*answer["failed"])
    value: Json = answer["value"]
    return value


def _answer(function: Callable[[], Json], writer: int) -> NoReturn:
    status = 1
    try:
        alarm(PATIENCE)
        try:
            answer: dict[str, Json] = {"value": function()}
        except KernelError as error:
            answer = {"failed": [error.call, error.target, error.errno]}
        except OSError as error:
            answer = {"failed": ["open", str(error.filename or ""), error.errno or errno.EIO]}
        os.write(writer, json.dumps(answer).encode())
        status = 0
    finally:
        os._exit(status)


def _raise(result: Json | Failure) -> Json:
    """Hand the failure of an inner attempt on to the outer one."""
    if isinstance(result, Failure):
        raise KernelError(result.call, result.target, result.errno)
    return result


class Probe:
    """The tries. ``around`` decides only how a box would be made here: with root's power, or in a user namespace."""

    def __init__(self, around: Surroundings, parent: str | None = None, doors: Doors | None = None) -> None:
        self.around = around
        self.parent = parent
        self.doors = doors or Doors()
        # Known once `cgroups` has found a hierarchy that works.
        self.cgroup_version: int | None = None
        self.cgroup_driver = ""

    def capabilities(self) -> list[Capability]:
        """Try everything, in the order in which a box is made."""
        found = []
        for name, function in self.tries().items():
            result = attempt(function)
            if result != "no try":
                found.append(judge(name, result if isinstance(result, Failure) else None, self.around))
        return found + self.cgroups()

    def tries(self) -> dict[str, Callable[[], Json]]:
        """Capability -> the function that tries it; each changes the process that it runs in."""
        kinds = {
            cap.MOUNT: namespaces.NEWNS,
            cap.PID: namespaces.NEWPID,
            cap.UTS: namespaces.NEWUTS,
            cap.IPC: namespaces.NEWIPC,
            cap.CGROUP_NS: namespaces.NEWCGROUP,
        }
        return {
            cap.USERNS: self.user_namespace,
            **{name: self._unsharer(flag) for name, flag in kinds.items()},
            cap.NET: self.network,
            cap.TIME: self.time,
            cap.CLONE3: self.clone3,
            cap.PIDFD: self.pidfd,
            cap.SETATTR: self.mount_attributes,
            cap.PROC: self.proc,
            cap.OVERLAY: self.overlay,
            cap.DISK_SCRATCH: self.disk_scratch,
            cap.IDMAP: self.idmap,
            cap.SECCOMP: self.seccomp,
        }

    # --- ways in ---

    def become_root(self, flags: int = 0) -> None:
        """Enter a user namespace in which we are root, together with the namespaces in ``flags``."""
        uid, gid = os.geteuid(), os.getegid()
        self.doors.unshare(namespaces.NEWUSER | flags)
        self.doors.write_proc("/proc/self/setgroups", "deny")
        self.doors.write_proc("/proc/self/uid_map", f"0 {uid} 1")
        self.doors.write_proc("/proc/self/gid_map", f"0 {gid} 1")

    def take(self, flags: int) -> None:
        """New namespaces, the way a box would get them here."""
        if not self.around.powerful:
            self.become_root()
        self.doors.unshare(flags)

    def private_mounts(self) -> str:
        """A mount namespace of our own with an empty tmpfs; returns its place."""
        self.take(namespaces.NEWNS)
        return self._stage()

    def _stage(self) -> str:
        self.doors.mount("none", "/", None, MS_REC_PRIVATE)
        place = self.around.tmpdir
        self.doors.mount("nsbox-probe", place, "tmpfs")
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{place}/{name}")
        return place

    # --- tries ---

    def _unsharer(self, flag: int) -> Callable[[], Json]:
        def unshare() -> Json:
            self.take(flag)
            return None

        return unshare

    def user_namespace(self) -> Json:
        self.become_root(namespaces.NEWUTS)
        # Where AppArmor restricts user namespaces, all is granted up to here and powers are missing.
        name = libc.Buffer(b"nsbox-probe")
        libc.call("sethostname", "in a user namespace", name.address, name.size)
        return None

    def network(self) -> Json:
        self.take(namespaces.NEWNET)
        self.doors.loopback_up()
        return None

    def time(self) -> Json:
        self.take(namespaces.NEWTIME)
        self.doors.set_clock_offsets(1.0, 1.0)
        return None

    def clone3(self) -> Json:
        pid, _ = self.doors.clone3(0)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return None

    def pidfd(self) -> Json:
        """Enter another process's namespace by its pidfd, and signal it."""
        reader, writer = os.pipe()
        # The target's namespace must be ours to enter: a new user namespace is (we are the parent of its owner).
        self.take(namespaces.NEWUTS)
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        pidfd = self.doors.open_pidfd(pid)
        self.doors.setns(pidfd, namespaces.NEWUTS)
        pidfd_send_signal(pidfd, SIGKILL)
        os.waitpid(pid, 0)
        return None

    def mount_attributes(self) -> Json:
        """Clone a mount, change it while nobody sees it, and give it a place."""
        place = self.private_mounts()
        self.doors.readonly_clone(place, f"{place}/merged")
        return None

    def proc(self) -> Json:
        """A new /proc as in a box: in its own user namespace, where the kernel refuses it if ours is partly hidden."""
        self.become_root(namespaces.NEWNS | namespaces.NEWPID)

        def as_init() -> Json:
            place = self._stage()
            self.doors.mount("proc", f"{place}/merged", "proc", 0xE)  # nosuid, nodev, noexec
            return None

        return _raise(attempt(as_init))

    def overlay(self) -> Json:
        place = self.private_mounts()
        option = "" if self.around.powerful else ",userxattr"
        lower = "/usr" if os.path.isdir("/usr") else f"{place}/lower"
        self.doors.mount("overlay", f"{place}/merged", "overlay", 0, _overlay_options(lower, place) + option)
        return None

    def disk_scratch(self) -> Json:
        """An overlay of / whose upper layer lies in the temporary directory."""
        if not self.around.idmaps:
            return "no try"
        # In a child of this child: the directory can be removed once no mount namespace holds the overlay.
        place = f"{self.around.tmpdir}/nsbox-probe-{os.getpid()}"
        os.mkdir(place, 0o700)
        try:
            return _raise(attempt(lambda: self._disk_overlay(place)))
        finally:
            _remove_tree(place)

    def _disk_overlay(self, place: str) -> Json:
        for name in ("upper", "work", "merged"):
            os.mkdir(f"{place}/{name}")
        self.take(namespaces.NEWNS)
        self.doors.mount("none", "/", None, MS_REC_PRIVATE)
        self.doors.mount("overlay", f"{place}/merged", "overlay", 0, _overlay_options("/", place))
        # The kernel may grant the mount and make it read-only.
        os.close(os.open(f"{place}/merged/nsbox-probe", os.O_CREAT | os.O_WRONLY, 0o600))
        return None

    def idmap(self) -> Json:
        """An overlay whose lower layer is an idmapped copy of the root."""
        if not self.around.idmaps:
            return "no try"
        place = self.private_mounts()
        reader, writer = os.pipe()
        ready_reader, ready_writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            self._hold_user_namespace(ready_writer, reader)
        os.close(ready_writer)
        try:
            os.read(ready_reader, 1)
            self.doors.write_maps(pid, "0 4294900000 1", "0 4294900000 1")
            userns = self.doors.open_namespace(pid, "user")
            self.doors.idmapped_clone("/", f"{place}/lower", userns)
            options = _overlay_options(f"{place}/lower", place)
            self.doors.mount("overlay", f"{place}/merged", "overlay", 0, options)
        finally:
            os.close(writer)
            os.waitpid(pid, 0)
        return None

    def _hold_user_namespace(self, ready: int, hold: int) -> NoReturn:
        try:
            self.doors.unshare(namespaces.NEWUSER)
            os.write(ready, b"1")
            os.read(hold, 1)
        finally:
            os._exit(0)

    def seccomp(self) -> Json:
        self.doors.allow_all_filter()
        return None

    # --- cgroups ---

    def cgroups(self) -> list[Capability]:
        """Whether groups can be made, which controllers they have, and whether swap is accounted."""
        result = attempt(self._try_cgroups)
        if isinstance(result, Failure):
            return [judge(cap.CGROUP, result, self.around)]
        assert isinstance(result, dict)
        version, problems = result["version"], result["problems"]
        assert isinstance(problems, dict)
        if not result["works"]:
            # One reason stands for all: the hierarchies of one machine fail alike.
            reasons = [problems[name] for name in ("", "memory", *sorted(problems)) if name in problems]
            return [_by_problem(cap.CGROUP, str(reasons[0] if reasons else "no hierarchy can be used"))]
        assert isinstance(version, int)
        self.cgroup_version = version
        self.cgroup_driver = str(result["driver"])
        controllers = result["controllers"]
        assert isinstance(controllers, list)
        found = [Capability(cap.CGROUP, works=True)]
        for name in V2_CONTROLLERS if version == 2 else V1_CONTROLLERS:
            if name in controllers:
                found.append(Capability(cap.controller(name), works=True))
            else:
                problem = problems.get(name) or why_absent(name, unified=version == 2)
                found.append(_by_problem(cap.controller(name), str(problem)))
        if "memory" in controllers:
            why = "the kernel does not account swap; boot it with swapaccount=1"
            found.append(Capability(cap.SWAP, works=True) if result["swap"] else _by_problem(cap.SWAP, why))
        return found

    def _try_cgroups(self) -> Json:
        wanted = frozenset(V1_CONTROLLERS + V2_CONTROLLERS)
        problem = self.doors.take_scope(self.parent, f"nsbox-probe-{os.getpid()}.scope", ())
        session = self.doors.open_session(self.parent, f"probe-{os.getpid()}", wanted)
        session.driver = "systemd" if systemd.has_scope() else session.driver
        if problem:
            session.problems = dict.fromkeys(session.problems, problem)
        try:
            node = session.make("probe", (), None)
            try:
                files = ("memory.memsw.limit_in_bytes", "memory.swap.max")
                swap = any(os.path.exists(f"{path}/{file}") for _, path in node.views for file in files)
                return {
                    "works": bool(node.views),
                    "version": session.version,
                    "driver": session.driver,
                    "controllers": sorted(session.controllers),
                    "problems": dict(session.problems),
                    "swap": swap,
                }
            finally:
                node.remove()
        finally:
            session.close()


def _by_problem(name: str, problem: str) -> Capability:
    """A capability from a text of kernel/cgroup: the reason, "; " and the fix."""
    why, _, fix = problem.rpartition("; ")
    return Capability(name, works=False, why=why or fix, fix=fix if why else "")


def _overlay_options(lower: str, place: str) -> str:
    return f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work"


def _remove_tree(top: str) -> None:
    for directory, names, files in os.walk(top, topdown=True):
        for name in names:
            # The kernel's own directory below an overlay's workdir has mode 0.
            os.chmod(f"{directory}/{name}", 0o700)
        for name in files:
            os.unlink(f"{directory}/{name}")
    for directory, _, _ in os.walk(top, topdown=False):
        os.rmdir(directory)


def main(parent: str | None = None) -> None:
    """Print the surroundings and all capabilities as JSON."""
    from dataclasses import asdict

    around = look_around()
    probe = Probe(around, parent)
    found = probe.capabilities()
    document = {
        "around": asdict(around),
        "capabilities": [asdict(capability) for capability in found],
        "cgroup_version": probe.cgroup_version,
        "cgroup_driver": probe.cgroup_driver,
    }
    sys.stdout.write(json.dumps(document))
