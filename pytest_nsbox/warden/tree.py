"""The root of a box, as a tree of mounts: built by a plan's operations, used for one box, and used again if the box
left it as it was.

Most tests change nothing in their root, and a tree is the dearest part of a box: an overlay makes and removes seven
inodes on the scratch's file system, and unmounting waits for an RCU grace period. A used tree is compared with what it
was, name by name; one that differs is thrown away. What the kernel remembers of the host's files in an overlay is
forgotten in between, so that the next box sees the host as it is then.

Each tree is attached in the warden's own mount namespace and copied by clone3 together with the new user namespace:
only then does the kernel lock the mounts, so that root in the box can neither unmount what hides something nor make
writable what is read-only (mount_namespaces(7)).
"""

from __future__ import annotations

import errno
import os
import stat

from pytest_nsbox.kernel import files
from pytest_nsbox.kernel.mount import NODEV, NOEXEC, NOSUID, RDONLY
from pytest_nsbox.policy import plan as plans
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.record import record
from pytest_nsbox.warden.changes import Layer, are_devices_as_begun, list_devices
from pytest_nsbox.warden.ids import SHIFTED_ROOT
from pytest_nsbox.warden.late import is_gone
from pytest_nsbox.warden.points import check_kind, make_mount_point
from pytest_nsbox.warden.stale import hide

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pytest_nsbox.policy.plan import Plan
    from pytest_nsbox.warden.changes import Listing
    from pytest_nsbox.warden.doors import Doors
    from pytest_nsbox.warden.session import Session

_TOO_DEEP = (
    "is an overlay on an overlay already, and the kernel stacks no more than two; "
    "boxes work two deep, and one deep in a container whose own root is an overlay"
)


class Tree:
    """A tree of mounts at `place`; `build` makes it, `remove` takes it away, however far it got.

    made   mount points that were made in the layers: no change of the test's
    hidden paths of the host that the box began without
    bound  host paths that may come and go (sockets, shared paths): what was bound when the tree was built, by device
           and inode
    """

    def __init__(self, session: Session, number: int, plan: Plan) -> None:
        self.session = session
        self.number = number
        self.plan = plan
        self.place = f"root/t{number}"
        self.scratch = f"{session.layers}/t{number}"
        self.layers: list[Layer] = []
        self.made: set[str] = set()
        self.hidden: set[str] = set()
        self.bound: dict[str, tuple[int, int]] = {}
        self.overlays: list[int] = []
        self.devices = -1
        self._devices_begun: Listing = {}
        # Files of the box's own that are bound in its root, by their name in `scratch`/init.
        self.init_files: list[str] = []
        # Where those and such of its neighbour are kept: {name: path}.
        self.init_paths: dict[str, str] = {}
        self._init_begun: Listing = {}
        self._attached = False

    def build(self, late: dict[str, tuple[int, int]]) -> None:
        """Put the tree together, with the host paths `late`. On failure the caller removes it."""
        self.bound = late
        builder = _Builder(self)
        try:
            self.session.act_as(shifted=self.plan.shifted)
            builder.build()
        finally:
            builder.close()
            self.session.act_as(shifted=False)
        for layer in self.layers:
            layer.begin()
        self._devices_begun = list_devices(self.devices)
        self._init_begun = self._list_init_files()

    def init_file(self, name: str) -> str:
        """Return where the box's own /etc/<name> is kept: what is written there the box sees at once."""
        return f"{self.scratch}/init/{name}"

    def _list_init_files(self) -> Listing:
        found: Listing = {}
        for name in self.init_files:
            at = os.stat(self.init_file(name))
            found[name] = (at.st_mode, at.st_uid, at.st_gid, at.st_ctime_ns)
        return found

    def is_unchanged(self) -> bool:
        """Say if the next box could not tell this tree from a new one."""
        try:
            return (
                self.plan.reusable
                and self.is_as_begun()
                and are_devices_as_begun(self.devices, self._devices_begun)
                and self._list_init_files() == self._init_begun
            )
        except OSError:
            return False

    def is_as_begun(self) -> bool:
        """Say if nothing was written to the layers."""
        try:
            return all(layer.is_as_begun() for layer in self.layers)
        except OSError:
            return False

    def renew(self) -> None:
        """Forget what was looked up in the overlays."""
        for overlay in self.overlays:
            self.session.doors.forget_lookups(overlay, self.place)

    def leave(self) -> Remains:
        """Close every descriptor, and return what there is to be removed."""
        for fd in (*self.overlays, self.devices):
            if fd >= 0:
                os.close(fd)
        self.overlays, self.devices = [], -1
        return Remains(self.place, self.scratch, self._attached, self.plan.disk is not None)

    def remove(self) -> None:
        """Take everything away; a second call does nothing."""
        remains, self._attached = self.leave(), False
        remains.remove(self.session.doors)


@record
class Remains:
    """What is left of a tree on the host when nobody uses it any more.

    place     where it is mounted, if it is `attached`
    scratch   the directory of its layers, on a file system of its own if it has a `disk`
    """

    place: str
    scratch: str
    attached: bool
    disk: bool

    def remove(self, doors: Doors) -> None:
        """Take it away; a second call does nothing."""
        if self.attached:
            _detach(doors, self.place)
        if self.disk:
            _detach(doors, self.scratch)
        files.remove_tree(self.scratch)
        try:
            os.rmdir(self.place)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise KernelError("remove", self.place, error.errno or errno.EIO) from None


def _detach(doors: Doors, place: str) -> None:
    try:
        doors.detach(place)
    except KernelError as error:
        # Not mounted, or not even made.
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise


class _Builder:
    """Performs the operations of a plan's tree, and holds the descriptors that they share."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.session = tree.session
        self.doors = tree.session.doors
        self.shifted = tree.plan.shifted
        self.nodev = 0 if tree.plan.privileged else NODEV
        # Root of the first mount made at each target: whatever goes on top of a layer is not what the layer's options
        # are for.
        self.mounts: dict[str, int] = {}
        self.root = -1

    def build(self) -> None:
        self.session.act_as(shifted=False)
        self.doors.make_directory(self.tree.place)
        self.session.act_as(shifted=self.shifted)
        self.doors.make_directory(self.tree.scratch)
        if self.tree.plan.disk is not None:
            self._mount_disk(self.tree.plan.disk)
        last = [op for op in self.tree.plan.tree if isinstance(op, plans.SetReadonly)]
        perform = _PERFORM
        if self.tree.plan.image or any(isinstance(op, plans.BindInit) for op in self.tree.plan.tree):
            from pytest_nsbox.warden.image import PERFORM

            perform = {**_PERFORM, **PERFORM}
        for op in self.tree.plan.tree:
            if op not in last:
                perform[type(op)](self, op)
        for path, place in self.tree.bound.items():
            try:
                self.bind(plans.Bind(path, path, readonly=False, shared=True))
                if self.tree.plan.user is not None:
                    self._let_through(path, *self.tree.plan.user)
            except (KernelError, FileNotFoundError):
                # Servers of others end at any moment, and take their sockets with them.
                if not is_gone(path, place):
                    raise
        # When nothing has to be made or opened up in the layers any more.
        for op in last:
            _PERFORM[type(op)](self, op)

    def close(self) -> None:
        """Close what the tree does not keep."""
        for fd in self.mounts.values():
            if fd not in self.tree.overlays:
                os.close(fd)
        self.mounts.clear()

    def _mount_disk(self, size: int) -> None:
        disk = self.doors.new_mount("tmpfs", (("mode", "755"), ("size", str(size))), NODEV, self.tree.scratch)
        try:
            self.doors.attach(disk, self.tree.scratch)
        finally:
            os.close(disk)

    def put(self, mount: int, target: str, *, directory: bool = True) -> None:
        """Attach `mount` at `target` in the tree, and keep it open if it is the first there; the mount point is made if
        there is none.
        """
        first = self.mounts.setdefault(target, mount)
        try:
            self._attach(mount, target, directory=directory)
        finally:
            if first != mount:
                os.close(mount)

    def _attach(self, mount: int, target: str, *, directory: bool) -> None:
        if target == "/":
            self.doors.attach(mount, self.tree.place)
            self.tree._attached = True
            self.root = mount
            return
        point = self._mount_point(target, directory=directory)
        try:
            self.doors.attach(mount, "", point)
        finally:
            os.close(point)

    def _mount_point(self, target: str, *, directory: bool) -> int:
        try:
            return self.doors.open_in(self.root, target)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
        self.tree.made |= make_mount_point(self.doors, self.root, target, directory=directory)
        return self.doors.open_in(self.root, target)

    def overlay(self, op: plans.Overlay) -> None:
        lower = f"{self.session.clones(self.tree.plan)}/{op.number}"
        self.put_overlay(op.number, op.target, lower, [("lowerdir", lower)])

    def put_overlay(self, number: int, target: str, lower: str, lowers: list[tuple[str, str | None]]) -> None:
        """Make overlay `number` over the directories that `lowers` names in the kernel's words, all of which `lower`
        shows as one.
        """
        layer = f"{self.tree.scratch}/{number}"
        for name in ("", "/upper", "/work"):
            self.doors.make_directory(layer + name)
        if not self.tree.plan.image:
            self._be_like(self.session.host.mounts[number], f"{layer}/upper")
        options: list[tuple[str, str | None]] = [
            *lowers,
            ("upperdir", f"{layer}/upper"),
            ("workdir", f"{layer}/work"),
            # The layer is thrown away: nothing of it needs to reach the disk.
            *(() if self.tree.plan.synced else (("volatile", None),)),
        ]
        if self.session.mode == "shifted":
            # Without these renaming a directory of the host is EXDEV, and hard links to its files break.
            options += [("redirect_dir", "on"), ("index", "on")]
        else:
            # All that the kernel lets root of a user namespace have.
            options.append(("userxattr", None))
        try:
            mount = self.doors.new_mount("overlay", options, self.nodev, target)
        except KernelError as error:
            if error.errno != errno.EINVAL or self.session.host.fstype(target) != "overlay":
                raise
            raise BoxFailed(f"{error}: {target} {_TOO_DEEP}") from None
        self.tree.overlays.append(mount)
        self.tree.layers.append(Layer(lower, target, layer))
        self.put(mount, target)
        if not self.tree.plan.image:
            names = hide(self.doors, mount, self.session.host.hidden.get(number, ()))
            self.tree.hidden.update(f"{target.rstrip('/')}/{name}" for name in names)

    def _be_like(self, top: plans.HostMount, upper: str) -> None:
        """Give the layer `upper` what the top of an overlay shows of itself, and what it must have from the start."""
        if (top.mode, top.owner) != (0o755, (0, 0)):
            if top.owner != (0, 0):
                uid, gid = (SHIFTED_ROOT if number == 0 and self.shifted else number for number in top.owner)
                files.attempt("chown", upper, os.chown, upper, uid, gid)
            files.attempt("chmod", upper, os.chmod, upper, top.mode)
        for name, mode in self.session.host.passages.get(top.number, {}).items():
            self.doors.make_directory(f"{upper}/{name}")
            files.attempt("chmod", name, os.chmod, f"{upper}/{name}", mode)
            self.tree.made.add(f"{top.target.rstrip('/')}/{name}")

    def show(self, op: plans.ShowMount) -> None:
        place = f"{self.session.clones(self.tree.plan)}/{op.number}"
        try:
            self._show(place, op)
        except KernelError as error:
            self.session.act_as(shifted=False)
            there = self.session.host.show_again(place, error)
            self.session.act_as(shifted=self.shifted)
            if there:
                self._show(place, op)

    def _show(self, place: str, op: plans.ShowMount) -> None:
        self.put(self.doors.clone_tree(place), op.target, directory=op.directory)

    def bind(self, op: plans.Bind) -> None:
        source = self.session.volume(op.source) if op.kind == "volume" else op.source
        if op.kind == "bind" and not op.shared and not os.path.exists(source):
            raise BoxFailed(f"volumes: '{source}:{op.target}': there is no {source} on the host, and boxes make no SRC")
        mount = self.session.host.clone_for_box(
            source, shifted=self.shifted, readonly=op.readonly, user=self.tree.plan.user if op.shared else None
        )
        directory = os.path.isdir(source)
        try:
            self.put(mount, op.target, directory=directory)
        except KernelError as error:
            if error.errno != errno.EINVAL or op.shared:
                raise
            check_kind(self.doors, self.root, (op.source, op.target), directory=directory)
            raise

    def _let_through(self, path: str, uid: int, gid: int) -> None:
        """Let the test's user get to `path`: pytest's base temp lies in a directory that only its maker may enter."""
        above = os.path.dirname(path)
        while above != "/":
            fd = self.doors.open_in(self.root, above)
            try:
                at = os.fstat(fd)
                bit = 0o100 if at.st_uid == uid else 0o010 if at.st_gid == gid else 0o001
                if not at.st_mode & bit:
                    files.attempt("chmod", above, os.chmod, f"/proc/self/fd/{fd}", stat.S_IMODE(at.st_mode) | bit)
                    self.tree.made.add(above)
            finally:
                os.close(fd)
            above = os.path.dirname(above)

    def tmpfs(self, op: plans.MountTmpfs) -> None:
        options: list[tuple[str, str | None]] = [("mode", f"{op.mode:o}")]
        if op.size is not None:
            options.append(("size", str(op.size)))
        attributes = NOSUID | (0 if op.devices else self.nodev)
        mount = self.doors.new_mount("tmpfs", options, attributes, op.target)
        if op.devices:
            # The mount's own descriptor is an O_PATH one and cannot be listed.
            self.tree.devices = files.open_directory(".", at=mount)
        self.put(mount, op.target)

    def device(self, op: plans.MakeDevice) -> None:
        self.doors.make_device(op.name, op.major, op.minor, at=self.mounts["/dev"])

    def bind_device(self, op: plans.BindDevice) -> None:
        self.doors.make_file(op.name, at=self.mounts["/dev"])
        self.put(self.doors.clone_tree(f"/dev/{op.name}"), f"/dev/{op.name}", directory=False)

    def let_device(self, op: plans.LetDevice) -> None:
        from pytest_nsbox.warden.devices import let_in

        let_in(self.doors, self.put, self.mounts["/dev"], op.path, made=self.session.mode == "shifted")

    def again(self, op: plans.ShowAgain) -> None:
        whole = self.session.mode in ("rootless", "identity") and op.target == "/sys"
        mount = self.doors.clone_tree("", recursive=whole, at=self.mounts[op.target])
        self.put(mount, op.place)

    def link(self, op: plans.MakeLink) -> None:
        self.doors.make_link(op.name, op.to, at=self.mounts["/dev"])

    def directory(self, op: plans.MakeDirectory) -> None:
        self.doors.make_directory(op.name, op.mode, at=self.mounts["/dev"])

    def sysfs(self, op: plans.ShowSysfs) -> None:
        # What is mounted below cannot be left out by who did not mount it; the box's cgroups go on top.
        whole = self.session.mode in ("rootless", "identity") and not op.own
        mount = self.doors.clone_tree("base" if op.own else "/sys", recursive=whole)
        self.put(mount, "/sys")
        self.doors.set_attributes(mount, RDONLY | NOSUID | NODEV | NOEXEC, recursive=whole, target="/sys")

    def readonly(self, op: plans.SetReadonly) -> None:
        self.doors.set_attributes(self.mounts[op.target], RDONLY, target=op.target)


_PERFORM: dict[type, Callable[[_Builder, Any], None]] = {
    plans.Overlay: _Builder.overlay,
    plans.ShowMount: _Builder.show,
    plans.Bind: _Builder.bind,
    plans.MountTmpfs: _Builder.tmpfs,
    plans.MakeDevice: _Builder.device,
    plans.BindDevice: _Builder.bind_device,
    plans.LetDevice: _Builder.let_device,
    plans.ShowAgain: _Builder.again,
    plans.MakeLink: _Builder.link,
    plans.MakeDirectory: _Builder.directory,
    plans.ShowSysfs: _Builder.sysfs,
    plans.SetReadonly: _Builder.readonly,
}
