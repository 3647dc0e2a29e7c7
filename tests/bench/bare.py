"""A pytest plugin that forks for each test and reports no more than that it ended, to say what a fork or a box costs at
the least: `pytest -p bare --bare=KIND`, for the benchmark alone.

fork    a fork in its turn
ahead   of the next test while one runs, with the pages pinned that tests write to (see `pytest_nsbox.pages`)
boxes   the same, each in a box of its own: a process beside pytest makes the boxes ahead, by next to nothing but the
        kernel's calls for the namespaces and their mounts, and the test's process goes in
limits  the same with `net=false` and limits, in groups of cgroup v1

What every plugin of this kind must do besides is left out: nothing of a test is told, no layer thrown away, no counter
read more than once, nothing checked. As root on x86-64.
"""

from __future__ import annotations

import array
import contextlib
import marshal
import os
import socket
from typing import NamedTuple

import pytest
from _pytest.reports import TestReport
from _pytest.runner import runtestprotocol

from pytest_nsbox.kernel import mount, namespaces, process, program
from pytest_nsbox.pages import Pages, written
from pytest_nsbox.policy.limits import cgroup_writes
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden.ids import SHIFTED_ROOT, box_maps
from pytest_nsbox.warden.init import GO
from pytest_nsbox.warden.recorded import Recorder

CGROUPS = "/sys/fs/cgroup"
HIERARCHIES = ("cpu", "cpuacct", "memory", "pids")
LIMITS = cgroup_writes(Spec(cpu=1.0, mem=512 << 20, swap=0, pids=64), 1)
COUNTERS = (
    ("cpu", "cpu.stat"),
    ("cpuacct", "cpuacct.usage"),
    ("memory", "memory.max_usage_in_bytes"),
    ("memory", "memory.oom_control"),
    ("pids", "pids.events"),
)
KINDS = ("fork", "ahead", "boxes", "limits")
READY = 2  # boxes that are kept ready, as the plugin's `sandbox_pool` is
MANY = 1000  # tests that are left, at the least: pages are worth to be asked for
SEPARATE = namespaces.NEWNS | namespaces.NEWUTS | namespaces.NEWIPC | namespaces.NEWUSER | namespaces.NEWTIME
ATTRIBUTES = mount.NOSUID | mount.NOEXEC
TERMINALS = (("mode", "620"), ("gid", "5"), ("ptmxmode", "666"))
MOUNTS = (
    ("proc", (), mount.NODEV, "/proc"),
    ("devpts", TERMINALS, 0, "/dev/pts"),
    ("mqueue", (), mount.NODEV, "/dev/mqueue"),
    ("sysfs", (), mount.NODEV | mount.RDONLY, "/sys"),
)


def pytest_addoption(parser):
    parser.addoption("--bare", choices=KINDS)


def pytest_configure(config):
    kind = config.getoption("bare")
    if kind == "fork":
        config.pluginmanager.register(InTurn())
    else:
        boxes = Boxes(limited=kind == "limits") if kind in ("boxes", "limits") else None
        config.pluginmanager.register(Ahead(boxes))


def log(item):
    for when in ("setup", "call", "teardown"):
        item.ihook.pytest_runtest_logreport(report=TestReport(item.nodeid, item.location, {}, "passed", None, when))


class InTurn:
    """One fork after the other."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        pid = os.fork()
        if pid == 0:
            try:
                runtestprotocol(item, log=False, nextitem=nextitem)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        log(item)
        return True


class Waiting(NamedTuple):
    """A process that waits for its turn."""

    pid: int
    begin: int  # a descriptor to write to
    told: int  # what it wrote to is read from this one
    tells: bool


class Ahead:
    """The next test's process is there while one runs."""

    def __init__(self, boxes):
        self.boxes = boxes
        self.pages = Pages()
        self.after = {}
        self.forked = None
        self.ended = []

    def pytest_collection_finish(self, session):
        self.after.update(zip(session.items, [*session.items[1:], None], strict=True))

    def pytest_unconfigure(self):
        if self.boxes is not None:
            self.boxes.close()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        test, self.forked = self.forked or self._fork(item), None
        os.write(test.begin, b".")
        if nextitem is not None and self.pages.are_settled:
            self.forked = self._fork(nextitem)
        with open(test.told, "rb") as file:
            pages = marshal.load(file)
        if test.tells:
            self.pages.learn(pages)
        os.close(test.begin)
        self.ended.append(test.pid)
        self._reap(0 if self.forked is None else 1)
        log(item)
        return True

    def _fork(self, item):
        tells = self.pages.before_fork(MANY)
        turn, begin = os.pipe()
        told, tell = os.pipe()
        box = self.boxes.take() if self.boxes is not None else None
        pid = box.fork() if box is not None else os.fork()
        if pid:
            os.close(turn)
            os.close(tell)
            return Waiting(pid, begin, told, tells)
        try:
            os.close(begin)
            if box is not None:
                box.enter()
            os.read(turn, 1)
            runtestprotocol(item, log=False, nextitem=self.after[item])
            os.write(tell, marshal.dumps(written() if tells else []))
        finally:
            os._exit(0)

    def _reap(self, most):
        """Collect what has ended but the last `most`: a box ends when nobody in it is left to be collected."""
        while len(self.ended) > most:
            os.waitpid(self.ended.pop(0), 0)
            if self.boxes is not None:
                self.boxes.give_back()


class Box:
    """pytest's end of one: descriptors of its init and of its groups' `tasks`."""

    own = -1  # pytest's pid namespace

    def __init__(self, fds, flags):
        self.init, *self.groups = fds
        self.flags = flags

    def fork(self):
        if Box.own < 0:
            Box.own = namespaces.open_namespace("self", "pid")
        namespaces.setns(self.init, namespaces.NEWPID)
        pid = os.fork()
        if pid:
            namespaces.setns(Box.own, namespaces.NEWPID)
            for fd in (self.init, *self.groups):
                os.close(fd)
        return pid

    def enter(self):
        for fd in self.groups:
            os.write(fd, b"0")
        namespaces.setns(self.init, self.flags)


class Boxes:
    """pytest's end of the process that makes boxes."""

    def __init__(self, *, limited):
        self.flags = SEPARATE | (namespaces.NEWNET if limited else 0)
        self.sock, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self.sock.close()
            status = 1
            try:
                with contextlib.ExitStack() as stack:
                    Maker(theirs, stack, self.flags, limited=limited).serve()
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        self.sock.send(b"+" * READY)

    def take(self):
        _, fds, _, _ = socket.recv_fds(self.sock, 1, 1 + len(HIERARCHIES))
        self.sock.send(b"+")
        return Box(fds, self.flags)

    def give_back(self):
        self.sock.send(b"-")

    def close(self):
        self.sock.shutdown(socket.SHUT_WR)
        while self.sock.recv(1):
            pass
        if os.waitpid(self.pid, 0)[1]:
            raise RuntimeError("the process that makes boxes failed")


class Made(NamedTuple):
    line: socket.socket
    pid: int
    pidfd: int
    groups: dict[str, str]


class Maker:
    """The process that makes boxes: one for each "+", and the oldest ends with each "-"."""

    def __init__(self, sock, stack, flags, *, limited):
        self.sock = sock
        self.flags = flags | namespaces.NEWPID
        self.limited = limited
        self.number = 0
        self.boxes: list[Made] = []
        self.bases = {}
        if limited:
            parent = os.environ.get("PYTEST_NSBOX_CGROUP_PARENT", "/").strip("/")
            for name in HIERARCHIES:
                self.bases[name] = make_group(f"{CGROUPS}/{name}", f"{parent}/bare-{os.getpid()}", stack)
        stack.callback(self._end_all)
        namespaces.unshare(namespaces.NEWNS)
        mount.make_private("/")
        # Mounted in our own namespace only, and gone with it.
        self._mount("tmpfs", "/tmp")
        os.chdir("/tmp")
        for name in ("upper", "work", "root"):
            os.mkdir(name)
        layers = (("lowerdir", "/"), ("upperdir", "/tmp/upper"), ("workdir", "/tmp/work"))
        self._mount("overlay", "root", layers)
        self._mount("tmpfs", "root/dev")
        for name in ("pts", "mqueue", "shm"):
            os.mkdir(f"root/dev/{name}")
        self._mount("tmpfs", "root/dev/shm")
        self.capabilities = process.Capabilities()
        self.starter = program.Starter()
        self.loaded = program.Loaded(self._program())

    @staticmethod
    def _mount(fstype, target, options=()):
        made = mount.new_mount(fstype, options, 0, target)
        mount.attach(made, target)
        os.close(made)

    def _end_all(self):
        for box in self.boxes:
            self._end(box)

    def serve(self):
        while word := self.sock.recv(1):
            if word == b"+":
                self.boxes.append(self._make())
            else:
                self._end(self.boxes.pop(0))

    def _make(self):
        self.number += 1
        groups = {name: f"{base}/{self.number}" for name, base in self.bases.items()}
        for group in groups.values():
            os.mkdir(group)
        for limit in LIMITS if groups else ():
            write(f"{groups[limit.controller]}/{limit.file}", limit.value)
        ours, theirs = socket.socketpair()
        process.set_fs_ids(SHIFTED_ROOT, SHIFTED_ROOT)
        self.capabilities.restore()
        pid, pidfd = self.starter.start(self.flags, self.loaded, {"line": theirs.fileno(), **groups})
        process.set_fs_ids(0, 0)
        self.capabilities.restore()
        theirs.close()
        namespaces.write_maps(pid, *box_maps("shifted"))
        ours.send(GO)
        if ours.recv(1) != program.READY:
            raise RuntimeError(str(self.loaded.refusal()))
        tasks = [os.open(f"{group}/tasks", os.O_WRONLY) for group in groups.values()]
        socket.send_fds(self.sock, [b"b"], array.array("i", [pidfd, *tasks]))
        for fd in tasks:
            os.close(fd)
        return Made(ours, pid, pidfd, groups)

    def _end(self, box):
        for name, file in COUNTERS if box.groups else ():
            fd = os.open(f"{box.groups[name]}/{file}", os.O_RDONLY)
            os.read(fd, 4096)
            os.close(fd)
        process.kill(box.pidfd)
        os.waitid(os.P_PIDFD, box.pidfd, os.WEXITED)
        os.close(box.pidfd)
        box.line.close()
        for group in box.groups.values():
            os.rmdir(group)

    def _program(self):
        """What the init of a box does: like the plugin's, a list of system calls in a process that copies no memory."""
        recorder = Recorder()
        if self.limited:
            recorder.loopback_up()
        root = recorder.clone_tree("root", recursive=True)
        recorder.attach(root, "root")
        recorder.await_go(program.LINE, GO)
        recorder.become(0, 0)
        mounts = [
            (recorder.new_mount(fstype, options, ATTRIBUTES | more), target)
            for fstype, options, more, target in MOUNTS
            if self.limited or fstype != "sysfs"  # who has no network namespace gets no sysfs
        ]
        recorder.change_directory(root)
        recorder.pivot_here()
        for made, target in mounts:
            recorder.attach(made, target)
        recorder.change_directory("/")
        recorder.program.wait()
        return recorder.program


def make_group(hierarchy, path, stack):
    """Make a group, and those above that are not there; what is made here is removed in the end."""
    group = hierarchy
    for name in path.strip("/").split("/"):
        group = f"{group}/{name}"
        if not os.path.isdir(group):
            os.mkdir(group)
            stack.callback(os.rmdir, group)
    return group


def write(path, text):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, text.encode())
    os.close(fd)
