"""One test session inside the warden: its directory, its clones of the host's mounts, its cgroups, and the trees that
wait for a box.

The session's directory holds (names relative to it; the warden's working directory is there, so that no path that goes
to the kernel depends on what the user's temporary directory is called):

    lock        held with flock as long as the warden lives; tells a later session which cgroups to sweep
    scratch/    layers/<tree>/<mount>/{upper,work}
                frames/<n>: what stands for a directory of the host that cannot be shown in one piece (`warden.frame`)
    host/<n>    mount number n of the host, with host id 0 shown as the id that is root in boxes
    plain/<n>   the same as it is, for privileged boxes
    volumes/    named volumes
    l/<n>       layers of images, and what of the host lies in boxes with an image's root (see image.py)
    image/<n>   what the layers of an image are together
    base/       a tmpfs with empty directories, to mount on
    views/      a tmpfs with what boxes see instead of files of /proc and /sys, see view.py
    root/<tree> trees
"""

from __future__ import annotations

import errno
import os

from pytest_nsbox.kernel import cgroup, files, namespaces, process
from pytest_nsbox.kernel.memory import Pins, as_ranges
from pytest_nsbox.kernel.mount import NODEV, read_mounts
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.hostmounts import is_first, parse_mountinfo, visible
from pytest_nsbox.policy.plan import Bind, HostFacts, Plan
from pytest_nsbox.real import text_of
from pytest_nsbox.warden import directory
from pytest_nsbox.warden.host import Host
from pytest_nsbox.warden.ids import SHIFTED_ROOT, UserNamespaces, box_maps, find_mode, kernel_shifts
from pytest_nsbox.warden.recorded import Recorded
from pytest_nsbox.warden.stale import find_stale_sockets
from pytest_nsbox.warden.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.kernel.cgroup_node import Session as CgroupSession
    from pytest_nsbox.policy.hostmounts import Mounted
    from pytest_nsbox.warden.doors import Doors
    from pytest_nsbox.warden.image import Images
    from pytest_nsbox.warden.late import Late
    from pytest_nsbox.warden.rootless import Outsider
    from pytest_nsbox.warden.views import Views

_TTY = 5  # the group of terminals, wherever it has a fixed number


# The number of the init that tells which pages it wrote to: the first ones still meet what is done only once.
_LEARN_FROM = 3


class Session:
    """What all boxes of the session share. `open` makes it, `close` removes it, however far it got."""

    def __init__(self, doors: Doors, tmpdir: str, cgroup_parent: str | None, kept_volumes: str = "") -> None:
        self.doors = doors
        self.cgroup_parent = cgroup_parent
        self.name = os.urandom(6).hex()
        self._tmpdir = tmpdir
        self.directory = f"{tmpdir.rstrip('/')}/{directory.PREFIX}{self.name}"
        self._user_namespaces = UserNamespaces(doors)
        self.layers = directory.LAYERS
        self.mode = ""
        # What boxes' uid_map and gid_map are, by what our own ids are called in them.
        self.maps: dict[tuple[int, int] | None, tuple[str, str]] = {}
        self.host = Host(doors, "", (), self._user_namespaces)
        self.facts = HostFacts()
        self.cgroups: CgroupSession | None = None
        self.view_names: set[str] = set()
        self._lock = -1
        self._outsider: Outsider | None = None
        self._capabilities = process.Capabilities()
        self._trees = 0
        self.recorded = Recorded()
        self._inits = 0
        self._pins: Pins | None = None
        self._screens_told = False
        self._views: Views | None = None
        self._images: Images | None = None
        # Trees that were used and left unchanged, the last one last.
        self._ready: list[Tree] = []
        # The last tree that can hold a volume that was removed, by the volume's name.
        self._dropped: dict[str, int] = {}
        # Volumes that a box of an image had.
        self.filled: set[str] = set()
        # Where the user's volumes are that outlive sessions; and those of them that we use, held with flock.
        self.kept_volumes = kept_volumes
        self.held_volumes: dict[str, int] = {}

    def open(self) -> None:
        """Make all of it. Raises BoxFailed."""
        try:
            self._open()
        except KernelError as error:
            raise BoxFailed(f"{error}; pytest --sandbox-doctor tells the fix") from None

    def _open(self) -> None:
        self.mode = find_mode()
        problem = self._take_scope()
        here = home = ""
        if self.mode == "rootless":
            from pytest_nsbox.warden import rootless

            here, home = rootless.find_places()
            rootless.enter(self.doors)
            self._capabilities = process.Capabilities()
        else:
            self._choose_ids()
            self.doors.unshare(namespaces.NEWNS)
        os.umask(0)
        seen = self._take_mounts()
        self._lock = directory.make(self.doors, self.directory, self.cgroup_parent)
        directory.fill(self.doors, self.directory, hidden=self.mode == "shifted")
        self.host = Host(self.doors, self.mode, seen, self._user_namespaces)
        self._mount_base()
        self.host.clone()
        if self.mode == "identity":
            from pytest_nsbox.warden import rootless

            # Only now: whoever is in a user namespace can neither clone what is mounted below a mount nor leave it out.
            self._outsider = rootless.Outsider(self.doors, self._remove_directory)
            self._outsider.enter()
            self._capabilities = process.Capabilities()
            self.maps[None] = box_maps(self.mode)
        if self.mode == "rootless":
            self.host.find_passages(tuple(place for place in (here, home) if place))
        self.host.hide(find_stale_sockets(("/tmp", "/var/tmp", self._tmpdir)))
        self._mount_layers()
        self.facts = HostFacts(
            mode=self.mode,
            mounts=self.host.mounts,
            time_ns=os.path.exists("/proc/self/ns/time"),
            passwd=text_of("/etc/passwd"),
            group=text_of("/etc/group"),
            ids=(os.geteuid(), os.getegid()),
            tty_group=self.mode == "shifted" or namespaces.is_mapped(_TTY, "gid_map"),
        )
        # Now nothing below comes along when a volume is the whole temporary directory.
        self.doors.make_unbindable(".")
        self.cgroups = cgroup.open_session(self.cgroup_parent, self.name, files=self.doors.cgroup_files)
        if problem:
            self.cgroups.problems = dict.fromkeys(self.cgroups.problems, problem)
        self.cgroups.open_screens()
        self.make_view_points(tuple(self.cgroups.screened))

    def _take_mounts(self) -> tuple[Mounted, ...]:
        """Make the mounts of our namespace our own, and return those that can be seen."""
        self.doors.make_private("/")
        mounts = parse_mountinfo(read_mounts())
        if is_first(mounts):
            self.doors.cover_root()
            mounts = parse_mountinfo(read_mounts())
        return visible(mounts)

    def _choose_ids(self) -> None:
        """Find out whether boxes' root can be another id than ours."""
        if self.mode == "shifted" and not kernel_shifts():
            self.mode = "identity"
        if self.mode == "shifted":
            clone = self.doors.clone_tree("/")
            try:
                self.doors.set_attributes(clone, idmap=self._user_namespaces.get(None), target="/")
            except KernelError as error:
                # The file system cannot; a filter of system calls may hide that the kernel can.
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                self.mode = "identity"
            finally:
                os.close(clone)
        if self.mode != "identity":
            self.maps[None] = box_maps(self.mode)

    def _take_scope(self) -> str:
        """Ask systemd for groups of our own where it owns all of them; return why it gave none, or ""."""
        # Before we enter a user namespace: who asks must be who we are.
        if not cgroup.systemd_is_booted():
            return ""
        from pytest_nsbox.kernel import systemd

        return systemd.take_scope(self.cgroup_parent, f"nsbox-{self.name}.scope", (os.getppid(),))

    def _mount_layers(self) -> None:
        """Make mounts of the parts of our directory that other mounts are made from; those cannot be unbindable."""
        self.host.attach_clone("volumes", "volumes")
        if self.mode == "shifted" or (self.mode == "rootless" and self.host.fstype(self.directory) != "overlay"):
            self.host.attach_clone(self.layers, self.layers)
            return
        # The root that we see is an overlay itself, and cannot hold the writable layer of another one.
        layers = self.doors.new_mount("tmpfs", (("mode", "755"),), NODEV, self.layers)
        try:
            self.doors.attach(layers, self.layers)
        finally:
            os.close(layers)

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
        if self._views is not None:
            attempt(self._views.close)
        if self.cgroups is not None:
            attempt(self.cgroups.close)
        self._user_namespaces.close()
        if self._pins is not None:
            self._pins.close()
            self._pins = None
        self.recorded.close()
        if self._images is not None:
            self._images.close()
        for fd in self.held_volumes.values():
            os.close(fd)
        if self._lock >= 0:
            attempt(self._remove_directory if self._outsider is None else self._outsider.remove)
            os.close(self._lock)
            self._lock = -1
        return problems

    def _remove_directory(self) -> None:
        os.chdir("/")
        try:
            self.doors.detach(self.directory)
        except KernelError as error:
            # Not mounted yet.
            if error.errno != errno.EINVAL:
                raise
        directory.remove(self.directory)

    def act_as(self, *, shifted: bool) -> None:
        """Make and access files as root of a box would (or as the host's root again), with all capabilities either way.

        An overlay mounted without this comes up read-only: host id 0 has no name on shifted layers (EOVERFLOW).
        """
        if self.mode == "rootless":
            return
        uid = SHIFTED_ROOT if shifted else 0
        self.doors.set_fs_ids(uid, uid)
        self._capabilities.restore()

    def maps_of(self, plan: Plan) -> tuple[str, str]:
        """Return uid_map and gid_map of a box of `plan`."""
        if plan.ids not in self.maps:
            self.maps[plan.ids] = box_maps(self.mode, plan.ids)
        return self.maps[plan.ids]

    def take_screens(self) -> tuple[int, ...]:
        """Return the session's screens (`kernel.cgroup_node`), at the first call only."""
        if self.cgroups is None or self._screens_told:
            return ()
        self._screens_told = True
        return self.cgroups.screens

    def wants_pages(self) -> bool:
        """Count an init that is about to be made; say if it is the one to tell which pages it wrote to."""
        self._inits += 1
        return self._inits == _LEARN_FROM

    def pin(self, pages: list[int]) -> None:
        """Have the kernel copy what every init writes to in the clone itself, cheaper than a fault for each page."""
        if not pages:
            return
        try:
            self._pins = Pins(as_ranges(pages))
        except KernelError:
            # There is no io_uring here; then it is done without.
            return

    @property
    def images(self) -> Images:
        """What the session has of images; made when the first one is used."""
        if self._images is None:
            from pytest_nsbox.warden.image import Images

            self._images = Images(self)
        return self._images

    def take_tree(self, plan: Plan, late: Late) -> Tree:
        """Return a tree of `plan` with the host paths `late` for one box."""
        for tree in reversed(self._ready):
            if tree.plan is plan and tree.bound == late:
                self._ready.remove(tree)
                return tree
        if plan.privileged and self.mode == "shifted":
            self.host.clone_plain()
        self.make_volumes(plan)
        if plan.image:
            self.images.prepare(plan)
            if any(kind == "volume" for kind, _ in plan.sources()):
                from pytest_nsbox.warden.takeover import fill_volumes

                fill_volumes(self, plan)
        self._trees += 1
        tree = Tree(self, self._trees, plan)
        try:
            tree.build(late)
        except BaseException:
            tree.remove()
            raise
        return tree

    def is_as_new(self, tree: Tree) -> bool:
        """Say if another box can have a tree that no box uses any more, once it was renewed."""
        return tree.is_unchanged() and not self._lost_a_volume(tree)

    def keep(self, tree: Tree, most: int) -> Tree | None:
        """Keep a tree that was renewed for another box, of all only the last `most`; return one to be removed."""
        if self._lost_a_volume(tree):
            return tree
        self._ready.append(tree)
        return self._ready.pop(0) if len(self._ready) > most else None

    def open_views(self) -> Views:
        """Return what shows boxes their limits, made at the first box that wants it."""
        if self._views is None:
            from pytest_nsbox.warden.views import Views

            self._views = Views(self)
        return self._views

    def find_disk(self) -> str:
        """Return the number of the disk that boxes write to."""
        from pytest_nsbox.warden.devices import find_disk

        return find_disk(f"{self.directory}/{self.layers}")

    def clones(self, plan: Plan) -> str:
        """Return the directory of the host's mounts for boxes of `plan`."""
        return "plain" if plan.privileged and self.mode == "shifted" else "host"

    def make_volumes(self, plan: Plan) -> None:
        """Make the named volumes of `plan` that are not there yet, volumes/<name>."""
        for op in plan.tree:
            if isinstance(op, Bind) and op.kind == "volume" and not os.path.isdir(self.volume(op.source)):
                self.doors.make_directory(f"volumes/{op.source}")

    def volume(self, name: str) -> str:
        """Return the directory of a named volume, whether it is there or not."""
        own = f"volumes/{name}"
        if not self.kept_volumes or os.path.isdir(own):
            return own
        from pytest_nsbox.warden.volumes import hold_kept

        return hold_kept(self, name) or own

    def _lost_a_volume(self, tree: Tree) -> bool:
        sources = tree.plan.sources() if self._dropped else ()
        return any(kind == "volume" and tree.number <= self._dropped.get(name, 0) for kind, name in sources)

    def drop_volume(self, name: str) -> list[Callable[[], None]]:
        """Take a named volume out of use, which no box has any more; return what removes it."""
        trees = [tree for tree in self._ready if ("volume", name) in tree.plan.sources()]
        for tree in trees:
            self._ready.remove(tree)
        # A box that has just ended may give its tree back later.
        self._dropped[name] = self._trees
        self.filled.discard(name)
        if name in self.held_volumes:
            os.close(self.held_volumes.pop(name))
            return [tree.remove for tree in trees]
        gone = f"volumes/.{os.urandom(6).hex()}"
        files.attempt("rename", f"volume {name}", os.rename, f"volumes/{name}", gone)
        return [*(tree.remove for tree in trees), lambda: files.remove_tree(gone)]

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
