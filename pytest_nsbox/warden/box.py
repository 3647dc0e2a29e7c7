"""The life of one box in the warden: its tree is put together, its init started, and in the end everything is taken away.

The tree is built in the warden's own mount namespace and copied by clone3 together with the new user namespace: only then does the kernel
lock the mounts, so that root in the box can neither unmount what hides something nor make writable what is read-only
(mount_namespaces(7)). Right after the clone the warden lets go of its copy.
"""

from __future__ import annotations

import errno
import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socketpair

from pytest_nsbox.kernel import files, namespaces, process
from pytest_nsbox.kernel.mount import NODEV, NOEXEC, NOSUID, RDONLY
from pytest_nsbox.policy import plan as plans
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.limits import cgroup_writes
from pytest_nsbox.warden import init
from pytest_nsbox.warden.session import LAYERS, SHIFT_MAP, SHIFTED_ROOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pytest_nsbox.kernel.cgroup_tree import Node
    from pytest_nsbox.policy.plan import Plan
    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.warden.session import Session

_FLAGS = {name: flag for flag, name in namespaces.FILES.items()}


class Box:
    """A box that exists. `pidfd` is its init's; `control` the line that holds the init (it ends when we hang up)."""

    __slots__ = ("bound", "control", "made", "name", "namespaces", "node", "pid", "pidfd", "plan", "reaped", "released", "spec")

    def __init__(self, name: str, spec: Spec, plan: Plan, node: Node) -> None:
        self.name = name
        self.spec = spec
        self.plan = plan
        self.node = node
        self.pid = -1
        self.pidfd = -1
        self.control = -1
        self.namespaces = 0
        self.bound: dict[str, tuple[int, int]] = {}
        # Paths in the layers that are ours and no change of the test's.
        self.made: set[str] = set()
        self.released = False
        self.reaped = False

    @property
    def scratch(self) -> str:
        """The directory of the layers, as seen without shifting."""
        return f"{LAYERS}/{self.name}"


class Undo:
    """What takes back half a box, last things first. A failure in it must not hide the one that it is about."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        """Have `step` run if it comes to undoing."""
        self._steps.append(step)

    def run(self) -> None:
        """Take everything back."""
        while self._steps:
            step = self._steps.pop()
            try:
                step()
            except (KernelError, BoxFailed, OSError):
                continue


def make_box(session: Session, name: str, spec: Spec, plan: Plan) -> Box:
    """Make a box. Raises BoxFailed or KernelError; then nothing of it is left."""
    owner = None if spec.privileged else SHIFTED_ROOT
    node = session.cgroups.make(name, cgroup_writes(spec, session.cgroups.version), owner)
    undo = Undo()
    undo.add(node.remove)
    box = Box(name, spec, plan, node)
    for kind in plan.namespaces:
        box.namespaces |= _FLAGS[kind]
    undo.add(lambda: files.remove_tree(box.scratch))
    builder = Builder(session, box)
    try:
        try:
            session.act_as(not spec.privileged)
            builder.build()
            _start(session, box, builder, undo)
        finally:
            session.act_as(False)
            builder.close()
    except BaseException:
        undo.run()
        raise
    return box


def _start(session: Session, box: Box, builder: Builder, undo: Undo) -> None:
    """Clone the init and see it through to the end of its preparations."""
    ours, theirs = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        box.control = ours.detach()
        undo.add(lambda: os.close(box.control))
        pid, pidfd = session.doors.clone3(box.namespaces)
        if pid == 0:
            init.run(session.doors, box.plan, theirs.fileno(), box.namespaces)
        box.pid, box.pidfd = pid, pidfd
        undo.add(lambda: end(box))
    finally:
        theirs.close()
    if box.namespaces & namespaces.NEWUSER:
        session.doors.write_maps(pid, SHIFT_MAP, SHIFT_MAP)
    os.write(box.control, init.GO)
    # While the init works: both wait for the kernel to let go of mounts.
    builder.close()
    report = os.read(box.control, 4096)
    if report != init.READY:
        raise init.failure(report)


def end(box: Box) -> None:
    """Kill the init and wait for it: for a box that was never handed out, whose init nothing holds back."""
    process.kill(box.pidfd)
    os.waitid(os.P_PIDFD, box.pidfd, os.WEXITED)
    os.close(box.pidfd)


class Builder:
    """Performs the operations of a plan's tree, and holds the descriptors that they share."""

    def __init__(self, session: Session, box: Box) -> None:
        self.session = session
        self.doors = session.doors
        self.box = box
        self.shifted = not box.spec.privileged
        # Detached root of each mount made so far, by its target.
        self.mounts: dict[str, int] = {}
        self.root = -1

    def build(self) -> None:
        """Put the tree together at root/."""
        self._make_scratch()
        for op in self.box.plan.tree:
            _PERFORM[type(op)](self, op)

    def close(self) -> None:
        """Close the descriptors and let go of the tree; a second call does nothing."""
        for fd in self.mounts.values():
            os.close(fd)
        self.mounts.clear()
        if self.root >= 0:
            self.root = -1
            self.doors.detach("root")

    def _make_scratch(self) -> None:
        self.place = f"shifted/{self.box.name}" if self.shifted else self.box.scratch
        self.doors.make_directory(self.place)

    def _put(self, mount: int, target: str, directory: bool = True) -> None:
        """Attach `mount` at `target` in the tree and keep it; the mount point is made if there is none."""
        self.mounts[target] = mount
        if target == "/":
            self.doors.attach(mount, "root")
            self.root = mount
            return
        point = self._mount_point(target, directory)
        try:
            self.doors.attach(mount, "", point)
        finally:
            os.close(point)

    def _mount_point(self, target: str, directory: bool) -> int:
        try:
            return self.doors.open_in(self.root, target)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
        self._make_mount_point(target, directory)
        return self.doors.open_in(self.root, target)

    def _make_mount_point(self, target: str, directory: bool) -> None:
        parts = [part for part in target.split("/") if part]
        above = self.doors.open_in(self.root, "/")
        try:
            for depth, part in enumerate(parts, 1):
                path = "/" + "/".join(parts[:depth])
                try:
                    below = self.doors.open_in(self.root, path)
                except KernelError as error:
                    if error.errno != errno.ENOENT:
                        raise
                    if depth < len(parts) or directory:
                        self.doors.make_directory(part, at=above)
                    else:
                        self.doors.make_file(part, at=above)
                    self.box.made.add(path)
                    below = self.doors.open_in(self.root, path)
                os.close(above)
                above = below
        finally:
            os.close(above)

    def overlay(self, op: plans.Overlay) -> None:
        layer = f"{self.place}/{op.layer}"
        for name in ("", "/upper", "/work"):
            self.doors.make_directory(layer + name)
        options = [
            ("lowerdir", f"{'host' if self.shifted else 'plain'}/{op.number}"),
            ("upperdir", f"{layer}/upper"),
            ("workdir", f"{layer}/work"),
            # Without these renaming a directory of the host is EXDEV, and hard links to its files break.
            ("redirect_dir", "on"),
            ("index", "on"),
            # The layer is thrown away: nothing of it needs to reach the disk.
            ("volatile", None),
        ]
        self._put(self.doors.new_mount("overlay", options, NODEV if self.shifted else 0, op.target), op.target)

    def show(self, op: plans.ShowMount) -> None:
        self._put(self.doors.clone_tree(f"{'host' if self.shifted else 'plain'}/{op.number}"), op.target, op.directory)

    def bind(self, op: plans.Bind) -> None:
        source = f"volumes/{op.source}" if op.kind == "volume" else op.source
        directory = os.path.isdir(source)
        clone = self.doors.clone_tree(source)
        try:
            attributes = (RDONLY if op.readonly else 0) | (NODEV if self.shifted else 0)
            idmap = self.session.user_namespace if self.shifted else None
            self.doors.set_attributes(clone, attributes, idmap=idmap, target=source)
        except BaseException:
            os.close(clone)
            raise
        self._put(clone, op.target, directory)

    def tmpfs(self, op: plans.MountTmpfs) -> None:
        options: list[tuple[str, str | None]] = [("mode", f"{op.mode:o}")]
        if op.size is not None:
            options.append(("size", str(op.size)))
        attributes = NOSUID | (0 if op.devices or not self.shifted else NODEV)
        self._put(self.doors.new_mount("tmpfs", options, attributes, op.target), op.target)

    def device(self, op: plans.MakeDevice) -> None:
        self.doors.make_device(op.name, op.major, op.minor, at=self.mounts["/dev"])

    def link(self, op: plans.MakeLink) -> None:
        self.doors.make_link(op.name, op.to, at=self.mounts["/dev"])

    def directory(self, op: plans.MakeDirectory) -> None:
        self.doors.make_directory(op.name, op.mode, at=self.mounts["/dev"])

    def sysfs(self, op: plans.ShowSysfs) -> None:
        self._put(self.doors.clone_tree("base" if op.own else "/sys"), "/sys")
        self.doors.set_attributes(self.mounts["/sys"], RDONLY | NOSUID | NODEV | NOEXEC, target="/sys")

    def cgroups(self, op: plans.ShowCgroups) -> None:
        views = self.box.node.views
        self._make_view_points([name for name, _ in views if name])
        base = self.doors.clone_tree("base/fs/cgroup")
        self._put(base, "/sys/fs/cgroup")
        self.doors.set_attributes(base, RDONLY | NOSUID | NODEV | NOEXEC, target="/sys/fs/cgroup")
        for name, path in views:
            target = f"/sys/fs/cgroup/{name}".rstrip("/")
            clone = self.doors.clone_tree(path)
            old = self.mounts.pop(target, None)
            if old is not None:
                os.close(old)
            self._put(clone, target)

    def _make_view_points(self, names: list[str]) -> None:
        for name in names:
            if name not in self.session.view_names:
                self.session.act_as(False)
                files.make_directory(f"base/fs/cgroup/{name}")
                self.session.act_as(self.shifted)
                self.session.view_names.add(name)

    def readonly(self, op: plans.SetReadonly) -> None:
        self.doors.set_attributes(self.mounts[op.target], RDONLY, target=op.target)


_PERFORM: dict[type, Callable[[Builder, Any], None]] = {
    plans.Overlay: Builder.overlay,
    plans.ShowMount: Builder.show,
    plans.Bind: Builder.bind,
    plans.MountTmpfs: Builder.tmpfs,
    plans.MakeDevice: Builder.device,
    plans.MakeLink: Builder.link,
    plans.MakeDirectory: Builder.directory,
    plans.ShowSysfs: Builder.sysfs,
    plans.ShowCgroups: Builder.cgroups,
    plans.SetReadonly: Builder.readonly,
}
