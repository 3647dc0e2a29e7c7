"""One test session inside the warden: its directory, its clones of the host's mounts, its cgroups, and the trees that
wait for a box.

The session's directory holds (names relative to it; the warden's working directory is there, so that no path that goes
to the kernel depends on what the user's temporary directory is called):

    lock        held with flock as long as the warden lives; tells a later session which cgroups to sweep
    scratch/    layers/<tree>/<mount>/{upper,work}
    shifted/    scratch/layers again, mounted so that host id 0 is shown as the id that is root in boxes
    host/<n>    mount number n of the host, shifted; plain/<n> the same as it is, for privileged boxes
    volumes/    named volumes
    base/       a tmpfs with empty directories, to mount on
    root/<tree> trees
"""

from __future__ import annotations

import errno
import os

from pytest_nsbox.kernel import cgroup, namespaces, process
from pytest_nsbox.kernel.mount import NODEV, RDONLY, read_mounts
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.hostmounts import Mounted, is_within, parse_mountinfo, visible
from pytest_nsbox.policy.plan import OWN, Bind, HostFacts, HostMount, Plan
from pytest_nsbox.warden import directory
from pytest_nsbox.warden.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.kernel.cgroup_node import Session as CgroupSession
    from pytest_nsbox.warden.doors import Doors
    from pytest_nsbox.warden.late import Late

# Root in a box is this id on the host. Nothing else uses it: subordinate ids (subuid(5)) and systemd's dynamic ranges
# end far below, and the last id of all, -1, is none.
SHIFTED_ROOT = 4_294_900_000
# The ids of a box, and what stands for them on the host; host id 0 has no name in it, so plain ownership by root opens
# nothing.
SHIFT_MAP = f"0 {SHIFTED_ROOT} 1\n1 1 {SHIFTED_ROOT - 1}\n"


class Session:
    """What all boxes of the session share. `open` makes it, `close` removes it, however far it got."""

    def __init__(self, doors: Doors, tmpdir: str, cgroup_parent: str | None) -> None:
        self.doors = doors
        self.cgroup_parent = cgroup_parent
        self.name = os.urandom(6).hex()
        self.directory = f"{tmpdir.rstrip('/')}/{directory.PREFIX}{self.name}"
        self.layers = directory.LAYERS
        self.facts = HostFacts()
        self.cgroups: CgroupSession | None = None
        self.view_names: set[str] = set()
        self._lock = -1
        self._capabilities = process.Capabilities()
        self._mounts: tuple[Mounted, ...] = ()
        self._user_namespaces: dict[tuple[int, int] | None, int] = {}
        self._plain = False
        self._trees = 0
        # Trees that were used and left unchanged, the last one last.
        self._ready: list[Tree] = []

    def open(self) -> None:
        """Make all of it. Raises KernelError or BoxFailed."""
        rows = namespaces.read_id_map()
        if os.geteuid() != 0 or not process.has_capability(process.CAP_SYS_ADMIN):
            raise BoxFailed("making boxes needs root: run pytest as root")
        if rows != ((0, 0, 4294967295),):
            raise BoxFailed("making boxes inside another user namespace is not supported yet")
        os.umask(0)
        self.doors.unshare(namespaces.NEWNS)
        self.doors.make_private("/")
        self._mounts = visible(parse_mountinfo(read_mounts()))
        self._lock = directory.make(self.doors, self.directory, self.cgroup_parent)
        directory.fill(self.doors, self.directory)
        self._mount_base()
        self.facts = HostFacts(
            mounts=self._clone_host(),
            time_ns=os.path.exists("/proc/self/ns/time"),
            passwd=_read("/etc/passwd"),
            group=_read("/etc/group"),
        )
        self._attach_clone(self.layers, "shifted", shifted=True)
        # The parts of the directory that mounts are made from.
        for place in (self.layers, "volumes"):
            self._attach_clone(place, place)
        # Now nothing below comes along when a volume is the whole temporary directory.
        self.doors.make_unbindable(".")
        self.cgroups = cgroup.open_session(self.cgroup_parent, self.name, files=self.doors.cgroup_files)

    def close(self) -> list[str]:
        """Remove everything; return what could not be removed, and why."""
        problems: list[str] = []

        def attempt(function: Callable[..., object], *arguments: object) -> None:
            try:
                function(*arguments)
            except (KernelError, BoxFailed, OSError) as error:
                problems.append(str(error))

        while self._ready:
            attempt(self._ready.pop().remove)
        if self.cgroups is not None:
            attempt(self.cgroups.close)
        for fd in self._user_namespaces.values():
            os.close(fd)
        self._user_namespaces.clear()
        if self._lock >= 0:
            attempt(os.chdir, "/")
            attempt(self._unmount)
            attempt(directory.remove, self.directory)
            os.close(self._lock)
            self._lock = -1
        return problems

    def _unmount(self) -> None:
        try:
            self.doors.detach(self.directory)
        except KernelError as error:
            # Not mounted yet.
            if error.errno != errno.EINVAL:
                raise

    def act_as(self, *, shifted: bool) -> None:
        """Make and access files as root of a box would (or as the host's root again), with all capabilities either way.

        An overlay mounted without this comes up read-only: host id 0 has no name on shifted layers (EOVERFLOW).
        """
        uid = SHIFTED_ROOT if shifted else 0
        self.doors.set_fs_ids(uid, uid)
        self._capabilities.restore()

    def take_tree(self, plan: Plan, late: Late) -> Tree:
        """Return a tree of `plan` with the host paths `late` for one box."""
        for tree in reversed(self._ready):
            if tree.plan is plan and tree.bound == late:
                self._ready.remove(tree)
                return tree
        if not plan.shifted:
            self._clone_plain()
        self.make_volumes(plan)
        self._trees += 1
        tree = Tree(self, f"t{self._trees}", plan)
        try:
            tree.build(late)
        except BaseException:
            tree.remove()
            raise
        return tree

    def give_back(self, tree: Tree, *, keep: int) -> Tree | None:
        """Keep a tree that no box uses any more if it is as good as new, of all only the last `keep`; return one to be
        removed.
        """
        if not tree.is_unchanged():
            return tree
        tree.renew()
        self._ready.append(tree)
        return self._ready.pop(0) if len(self._ready) > keep else None

    def clones(self, *, shifted: bool) -> str:
        """Return the directory of the host's mounts for boxes that are (not) shifted."""
        return "host" if shifted else "plain"

    def make_volumes(self, plan: Plan) -> None:
        """Make the named volumes of `plan` that are not there yet, volumes/<name>."""
        for op in plan.tree:
            if isinstance(op, Bind) and op.kind == "volume" and not os.path.isdir(f"volumes/{op.source}"):
                self.doors.make_directory(f"volumes/{op.source}")

    def clone_for_box(self, source: str, *, shifted: bool, readonly: bool, user: tuple[int, int] | None = None) -> int:
        """Return a detached mount of the host's `source`, to be attached in a box.

        user  what belongs to root is shown as this user's, and the other way round
        """
        source = os.path.realpath(source)
        below = any(m.target != source and is_within(m.target, source) for m in self._mounts)
        attributes = (RDONLY if readonly else 0) | (NODEV if shifted else 0)
        idmap = self._user_namespace(user) if shifted else None
        clone = self.doors.clone_tree(source, recursive=below)
        try:
            self.doors.set_attributes(clone, attributes, idmap=idmap, recursive=below, target=source)
        except KernelError as error:
            os.close(clone)
            if error.errno == errno.EINVAL and below:
                # Something mounted below it cannot be shifted (a proc, for one): without what is below, then.
                return self._clone_alone(source, attributes, idmap)
            raise
        return clone

    def _clone_alone(self, source: str, attributes: int, idmap: int | None) -> int:
        clone = self.doors.clone_tree(source)
        try:
            self.doors.set_attributes(clone, attributes, idmap=idmap, target=source)
        except KernelError:
            os.close(clone)
            raise
        return clone

    def _user_namespace(self, user: tuple[int, int] | None) -> int:
        """Return a descriptor of a user namespace whose map idmapped mounts refer to: the boxes' own, or one that swaps
        root and `user`.
        """
        if user not in self._user_namespaces:
            maps = (SHIFT_MAP, SHIFT_MAP) if user is None else (_swap_map(user[0]), _swap_map(user[1]))
            self._user_namespaces[user] = self._make_user_namespace(*maps)
        return self._user_namespaces[user]

    def _make_user_namespace(self, uid_map: str, gid_map: str) -> int:
        reader, writer = os.pipe()
        try:
            pid, pidfd = self.doors.clone3(namespaces.NEWUSER)
            if pid == 0:
                try:
                    os.close(writer)
                    os.read(reader, 1)
                finally:
                    os._exit(0)
            try:
                self.doors.write_maps(pid, uid_map, gid_map)
                return self.doors.open_namespace(pid, "user")
            finally:
                process.kill(pidfd)
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
                os.close(pidfd)
        finally:
            os.close(writer)
            os.close(reader)

    def _mount_base(self) -> None:
        base = self.doors.new_mount("tmpfs", (("mode", "755"), ("size", "1m")), NODEV, "base")
        try:
            self.doors.attach(base, "base")
        finally:
            os.close(base)
        for name in ("base/fs", "base/fs/cgroup"):
            self.doors.make_directory(name)

    def make_view_points(self, views: tuple[tuple[str, str], ...]) -> None:
        """Make the directories that a box's cgroups will be bound on."""
        for name, _ in views:
            if name and name not in self.view_names:
                self.doors.make_directory(f"base/fs/cgroup/{name}")
                self.view_names.add(name)

    def _clone_host(self) -> tuple[HostMount, ...]:
        """Clone what boxes show of the host to host/<n>."""
        shown: list[HostMount] = []
        for mount in self._mounts:
            own = mount.target != "/" and any(is_within(mount.target, place) for place in OWN)
            if own or mount.fstype == "autofs" or not os.path.exists(mount.target):
                continue
            number = len(shown)
            is_directory = os.path.isdir(mount.target)
            writable = is_directory and not (mount.readonly or mount.pseudo)
            place = f"host/{number}"
            (self.doors.make_directory if is_directory else self.doors.make_file)(place)
            attributes = NODEV if writable else NODEV | RDONLY
            shifted = True
            try:
                self._attach_clone(mount.target, place, attributes, shifted=True)
            except KernelError as error:
                if mount.target == "/" or error.errno != errno.EINVAL:
                    raise
                # This file system cannot be shifted. Files of root look as nobody's there; who may read them still may.
                self._attach_clone(mount.target, place, attributes)
                shifted = False
            shown.append(HostMount(number, mount.target, writable, is_directory, shifted))
        return tuple(shown)

    def _clone_plain(self) -> None:
        """Clone the same to plain/<n>, as it is, at the first privileged box."""
        if self._plain:
            return
        for mount in self.facts.mounts:
            place = f"plain/{mount.number}"
            if not os.path.lexists(place):
                (self.doors.make_directory if mount.directory else self.doors.make_file)(place)
            self._attach_clone(mount.target, place, 0 if mount.writable else RDONLY)
        self._plain = True

    def _attach_clone(self, source: str, place: str, attributes: int = NODEV, *, shifted: bool = False) -> None:
        clone = self.doors.clone_tree(source)
        try:
            self.doors.set_attributes(
                clone, attributes, idmap=self._user_namespace(None) if shifted else None, target=source
            )
            self.doors.attach(clone, place)
        finally:
            os.close(clone)


def _swap_map(number: int) -> str:
    """Return an id map that shows 0 as `number` and `number` as root of a box."""
    if number == 0:
        return SHIFT_MAP
    rows = [
        (0, number, 1),
        (1, 1, number - 1),
        (number, SHIFTED_ROOT, 1),
        (number + 1, number + 1, SHIFTED_ROOT - 1 - number),
    ]
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in rows if count)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
