"""One test session inside the warden: its directory, its user namespace, its clones of the host's mounts, its cgroups.

The session's directory holds (names relative to it; the warden's working directory is there, so that no path that goes to the kernel
depends on what the user's temporary directory is called):

    lock        held with flock as long as the warden lives; tells a later session which cgroups to sweep
    scratch/    layers/<box>/<layer>/{upper,work}
    shifted/    scratch/layers again, mounted so that host id 0 is shown as the id that is root in boxes
    host/<n>    mount number n of the host, shifted; plain/<n> the same as it is, for privileged boxes
    volumes/    named volumes
    base/       a tmpfs with empty directories, to mount on
    root/       where the tree of the box in the making is put together
"""

from __future__ import annotations

import fcntl
import json
import os

from pytest_nsbox.kernel import cgroup, files, namespaces, process
from pytest_nsbox.kernel.mount import NODEV, RDONLY, read_mounts
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.hostmounts import is_within, parse_mountinfo, visible
from pytest_nsbox.policy.plan import OWN, HostFacts, HostMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.warden.doors import Doors

PREFIX = "nsbox-"
# Root in a box is this id on the host. Nothing else uses it: subordinate ids (subuid(5)) and systemd's dynamic ranges end far below,
# and the last id of all, -1, is none.
SHIFTED_ROOT = 4_294_900_000
# Owner of the session's directory: an id that no box can name, so that no box's root may look into it through its view of the host.
_NOBODY = SHIFTED_ROOT + 1
SHIFT_MAP = f"0 {SHIFTED_ROOT} 1\n1 1 {SHIFTED_ROOT - 1}\n"
LAYERS = "scratch/layers"
DIRECTORIES = ("scratch", "shifted", "host", "plain", "volumes", "base", "root")


class Session:
    """What all boxes of the session share."""

    def __init__(self, doors: Doors, tmpdir: str, cgroup_parent: str | None) -> None:
        self.doors = doors
        self.tmpdir = tmpdir
        self.cgroup_parent = cgroup_parent
        self.name = os.urandom(6).hex()
        self.directory = f"{tmpdir}/{PREFIX}{self.name}"
        self.shared: tuple[str, ...] = ()
        self.facts = HostFacts()
        self.user_namespace = -1
        self.view_names: set[str] = set()
        self._lock = -1
        self._capabilities = process.Capabilities()
        self._plain = False

    def open(self) -> None:
        """Make all of it. Raises KernelError or BoxFailed; `close` then removes what was made."""
        rows = namespaces.read_id_map()
        if os.geteuid() != 0 or not process.has_capability(process.CAP_SYS_ADMIN):
            raise BoxFailed("making boxes needs root: run pytest as root")
        if rows != ((0, 0, 4294967295),):
            raise BoxFailed("making boxes inside another user namespace is not supported yet")
        os.umask(0)
        self.doors.unshare(namespaces.NEWNS)
        self.doors.make_private("/")
        mounts = visible(parse_mountinfo(read_mounts()))
        self._make_directory()
        self.user_namespace = self._make_user_namespace()
        self._clone_host(mounts)
        # Now nothing below comes along when a volume is the whole temporary directory.
        self.doors.make_unbindable(".")
        self.cgroups = cgroup.open_session(self.cgroup_parent, self.name, files=self.doors.cgroup_files)

    def _make_directory(self) -> None:
        # Inits must get to root/, and nobody to anything else.
        files.make_directory(self.directory, 0o711)
        self._lock = files.attempt("open", "lock", os.open, f"{self.directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.write(self._lock, json.dumps({"cgroup_parent": self.cgroup_parent}).encode())
        os.chdir(self.directory)
        # A mount of its own, to be made unbindable.
        here = self.doors.clone_tree(".")
        try:
            self.doors.attach(here, self.directory)
            self.doors.change_directory(here)
        finally:
            os.close(here)
        for name in DIRECTORIES:
            files.make_directory(name, 0o755 if name == "root" else 0o700)
        for name in (".", "lock", *DIRECTORIES):
            files.attempt("chown", name, os.chown, name, _NOBODY, _NOBODY)
        files.make_directory(LAYERS)
        base = self.doors.new_mount("tmpfs", (("mode", "755"), ("size", "1m")), NODEV, "base")
        try:
            self.doors.attach(base, "base")
        finally:
            os.close(base)
        for name in ("base/fs", "base/fs/cgroup"):
            files.make_directory(name)

    def _make_user_namespace(self) -> int:
        """Return a descriptor of a user namespace with our map; nobody lives in it, idmapped mounts refer to it."""
        reader, writer = os.pipe()
        pid, pidfd = self.doors.clone3(namespaces.NEWUSER)
        if pid == 0:
            try:
                os.close(writer)
                os.read(reader, 1)
            finally:
                os._exit(0)
        try:
            self.doors.write_maps(pid, SHIFT_MAP, SHIFT_MAP)
            return self.doors.open_namespace(pid, "user")
        finally:
            os.close(writer)
            os.close(reader)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)

    def _clone_host(self, mounts: tuple) -> None:
        shown = []
        for mount in mounts:
            own = mount.target != "/" and any(is_within(mount.target, place) for place in OWN)
            if own or mount.fstype == "autofs" or is_within(mount.target, self.directory):
                continue
            try:
                directory = os.path.isdir(mount.target)
                if not os.path.exists(mount.target):
                    continue
            except OSError:
                continue
            number = len(shown)
            writable = not (mount.readonly or mount.pseudo) and directory
            shifted = self._show(f"host/{number}", mount.target, directory, writable)
            shown.append(HostMount(number, mount.target, writable, directory, shifted))
        for source, place, idmap in ((LAYERS, "shifted", self.user_namespace), ("volumes", "volumes", None)):
            clone = self.doors.clone_tree(source)
            try:
                if idmap is not None:
                    self.doors.set_attributes(clone, NODEV, idmap=idmap)
                self.doors.attach(clone, place)
            finally:
                os.close(clone)
        self.facts = HostFacts(mounts=tuple(shown), time_ns=os.path.exists("/proc/self/ns/time"))

    def _show(self, place: str, target: str, directory: bool, writable: bool) -> bool:
        """Clone what is mounted at `target` to `place`; say if its ids are shifted."""
        (files.make_directory if directory else files.make_file)(place)
        clone = self.doors.clone_tree(target)
        shifted = True
        try:
            try:
                self.doors.set_attributes(clone, NODEV | (0 if writable else RDONLY), idmap=self.user_namespace, target=target)
            except KernelError:
                if target == "/":
                    raise
                # Files of root look as nobody's there; who may read them still may.
                self.doors.set_attributes(clone, NODEV | (0 if writable else RDONLY), target=target)
                shifted = False
            self.doors.attach(clone, place)
        finally:
            os.close(clone)
        return shifted

    def act_as(self, shifted: bool) -> None:
        """Make and access files as root of a box would (or as the host's root again), with all capabilities either way.

        An overlay mounted without this comes up read-only: host id 0 has no name on shifted layers (EOVERFLOW).
        """
        uid = SHIFTED_ROOT if shifted else 0
        self.doors.set_fs_ids(uid, uid)
        self._capabilities.restore()

    def close(self) -> list[str]:
        """Remove everything that `open` made; return what could not be removed, and why."""
        problems: list[str] = []

        def attempt(function, *arguments) -> None:
            try:
                function(*arguments)
            except (KernelError, BoxFailed, OSError) as error:
                problems.append(str(error))

        if hasattr(self, "cgroups"):
            attempt(self.cgroups.close)
        if self._lock >= 0:
            os.chdir("/")
            attempt(self.doors.detach, self.directory)
            attempt(remove_directory, self.directory)
            os.close(self._lock)
            self._lock = -1
        if self.user_namespace >= 0:
            os.close(self.user_namespace)
            self.user_namespace = -1
        return problems


def remove_directory(directory: str) -> None:
    """Remove a session's directory. What clones of the host were mounted on is removed by rmdir alone: a mount that is still there is
    an error then, and not a host whose files are gone.
    """
    for name in DIRECTORIES:
        path = f"{directory}/{name}"
        if name in ("scratch", "volumes"):
            files.remove_tree(path)
            continue
        try:
            entries = list(os.scandir(path))
        except FileNotFoundError:
            continue
        for entry in entries:
            remove = os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink
            files.attempt("remove", entry.path, remove, entry.path)
        files.attempt("remove", path, os.rmdir, path)
    try:
        os.unlink(f"{directory}/lock")
    except FileNotFoundError:
        pass
    files.attempt("remove", directory, os.rmdir, directory)
