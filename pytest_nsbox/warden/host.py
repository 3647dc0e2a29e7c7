"""The host's mounts as boxes get to see them: clones in the session's directory, made once, and clones for one box.

Clones are nodev (a read-only mount does not stop writes to a block device), and in shifted mode they show ids through
the boxes' map: so ids look and are stored unchanged, while the kernel knows root in the box as another one.
"""

from __future__ import annotations

import errno
import os
import stat

from pytest_nsbox.kernel.mount import NODEV, RDONLY
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.hostmounts import Mounted, is_within
from pytest_nsbox.policy.plan import LOWER, OWN, HostMount
from pytest_nsbox.warden.directory import LAYERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.warden.doors import Doors
    from pytest_nsbox.warden.ids import UserNamespaces


class Host:
    """`mounts` are those that boxes show; number n of them is at host/<n> (for privileged boxes at plain/<n>)."""

    def __init__(self, doors: Doors, mode: str, seen: tuple[Mounted, ...], user_namespaces: UserNamespaces) -> None:
        self._doors = doors
        self._mode = mode
        self._seen = seen
        self._user_namespaces = user_namespaces
        self._plain = False
        self.mounts: tuple[HostMount, ...] = ()
        # Rootless: directories that layers begin with, by number of the mount (`warden.frame`).
        self.passages: dict[int, dict[str, int]] = {}
        # Paths that boxes do not show, by number of the mount, relative to its target (`warden.stale`).
        self.hidden: dict[int, list[str]] = {}

    def clone(self) -> None:
        """Clone what boxes show to host/<n>."""
        shown: list[HostMount] = []
        for mount in self._seen:
            own = mount.target != "/" and any(is_within(mount.target, place) for place in OWN)
            if own or mount.fstype == "autofs" or not os.path.exists(mount.target):
                continue
            shown += self._clone_if_there(len(shown), mount)
        self.mounts = tuple(shown)

    def _clone_if_there(self, number: int, mount: Mounted) -> list[HostMount]:
        try:
            source = self._bare(mount)
            if source is None:
                return self._clone_pieces(number, mount)
            if (one := self._clone_one(number, mount, source)) is not None:
                return [one]
        except (KernelError, OSError) as error:
            if error.errno != errno.ENOENT or os.path.lexists(mount.target):
                raise
            # Unmounted and removed since we looked.
        # What it was to be mounted on is the next one's.
        _remove(f"host/{number}")
        return []

    def _clone_one(self, number: int, mount: Mounted, source: str) -> HostMount | None:
        at = os.stat(source)
        directory = stat.S_ISDIR(at.st_mode)
        writable = directory and not (mount.readonly or mount.pseudo)
        place = f"host/{number}"
        (self._doors.make_directory if directory else self._doors.make_file)(place)
        attributes = NODEV if writable else NODEV | RDONLY
        if self._mode == "shifted":
            try:
                if not self._show(source, place, attributes, shifted=True):
                    return None
            except KernelError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                owner = (at.st_uid, at.st_gid)
                return HostMount(number, mount.target, writable, directory, stat.S_IMODE(at.st_mode), owner)
        # Where a file system cannot be shifted, root's files look as nobody's; who may read them still may.
        if not self._show(source, place, attributes):
            return None
        return HostMount(number, mount.target, writable, directory, self._mode_of(source))

    def _show(self, source: str, place: str, attributes: int, *, shifted: bool = False) -> bool:
        """Have `place` show what the mount of `source` does; say if that can be done (see `warden.deleted`)."""
        try:
            self.attach_clone(source, place, attributes, shifted=shifted)
        except KernelError as error:
            return self._show_copy(error, source, place, attributes, shifted=shifted)
        return True

    def _show_copy(self, error: KernelError, source: str, place: str, attributes: int, *, shifted: bool) -> bool:
        from pytest_nsbox.warden import deleted

        if error.errno != errno.ENOENT or not deleted.is_deleted(source):
            raise error
        # The rest of our directory is unbindable once the session is open.
        copy = f"{LAYERS}/{place.replace('/', '-')}"
        if not deleted.copy(source, copy, owned=self._mode == "shifted"):
            return False
        if source == place:
            self._doors.detach(place)
        self.attach_clone(copy, place, attributes, shifted=shifted)
        return True

    def show_again(self, place: str, error: KernelError) -> bool:
        """Have the clone at `place`, of which no box could be given one for `error`, outlast that what it shows was
        deleted; say if it can. If not, there is no such place from now on. Raises `error` if that is not the reason.
        """
        if not os.path.lexists(place):
            return False
        plain = place.startswith("plain/")
        shifted = self._mode == "shifted" and not plain
        if self._show_copy(error, place, place, RDONLY if plain else NODEV | RDONLY, shifted=shifted):
            return True
        self._doors.detach(place)
        _remove(place)
        return False

    def _mode_of(self, path: str) -> int:
        if self._mode != "rootless":
            return stat.S_IMODE(os.stat(path).st_mode)
        from pytest_nsbox.warden.frame import mode_for_us

        return mode_for_us(path)

    def _bare(self, mount: Mounted) -> str | None:
        """Return where `mount` can be cloned without what is mounted on it, or None if it cannot.

        Inside a user namespace the kernel refuses that for mounts that hide something; boxes show theirs once more.
        """
        covered = any(other.target != mount.target and is_within(other.target, mount.target) for other in self._seen)
        if self._mode == "shifted" or not covered:
            return mount.target
        for other in self._seen:
            if is_within(other.target, LOWER) and (other.device, other.root) == (mount.device, mount.root):
                return other.target
        try:
            os.close(self._doors.clone_tree(mount.target))
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise
            return None
        return mount.target

    def _clone_pieces(self, first: int, mount: Mounted) -> list[HostMount]:
        from pytest_nsbox.warden.frame import take_apart

        if not os.path.isdir("scratch/frames"):
            self._doors.make_directory("scratch/frames")
        shown = []
        for number, piece in enumerate(
            take_apart(mount.target, "scratch/frames", (other.target for other in self._seen)), first
        ):
            directory = os.path.isdir(piece.target)
            place = f"host/{number}"
            (self._doors.make_directory if directory else self._doors.make_file)(place)
            writable = piece.writable and not (mount.readonly or mount.pseudo)
            self.attach_clone(piece.frame or piece.target, place, NODEV if writable else NODEV | RDONLY)
            shown.append(HostMount(number, piece.target, writable, directory, self._mode_of(piece.target)))
        return shown

    def find_passages(self, places: tuple[str, ...]) -> None:
        """Find what an ordinary user's layers must begin with, given `places` that tests are likely to write in."""
        from pytest_nsbox.warden.frame import find_passages

        targets = frozenset(mount.target for mount in self.mounts) | frozenset(OWN)
        for mount in self.mounts:
            if mount.writable:
                self.passages[mount.number] = find_passages(mount.target, places, targets)

    def hide(self, paths: list[str]) -> None:
        """Have boxes begin without `paths`."""
        for path in paths:
            mount = max((m for m in self.mounts if is_within(path, m.target)), key=lambda m: len(m.target))
            self.hidden.setdefault(mount.number, []).append(os.path.relpath(path, mount.target))

    def clone_plain(self) -> None:
        """Clone the same to plain/<n> with ids as they are, at the first privileged box."""
        if self._plain:
            return
        for mount in self.mounts:
            place = f"plain/{mount.number}"
            if not os.path.lexists(place):
                (self._doors.make_directory if mount.directory else self._doors.make_file)(place)
            if not self._show(mount.target, place, 0 if mount.writable else RDONLY):
                _remove(place)
        self._plain = True

    def attach_clone(self, source: str, place: str, attributes: int = NODEV, *, shifted: bool = False) -> None:
        """Clone the mount of `source` to `place`."""
        clone = self._doors.clone_tree(source)
        try:
            idmap = self._user_namespaces.get(None) if shifted else None
            self._doors.set_attributes(clone, attributes, idmap=idmap, target=source)
            self._doors.attach(clone, place)
        finally:
            os.close(clone)

    def clone_for_box(self, source: str, *, shifted: bool, readonly: bool, user: tuple[int, int] | None = None) -> int:
        """Return a detached mount of the host's `source`, to be attached in a box.

        user  what belongs to root is shown as this user's, and the other way round

        Raises BoxFailed for a file system that cannot show other ids than it has.
        """
        source = os.path.realpath(source)
        below = any(m.target != source and is_within(m.target, source) for m in self._seen)
        # Without the rights of the first user namespace, the kernel's own flags of a mount stay as they are.
        attributes = (RDONLY if readonly else 0) | (NODEV if shifted else 0)
        idmap = self._user_namespaces.get(user) if shifted else None
        # With what is mounted below it; without, if some of that cannot be shifted (a proc, for one).
        for recursive in (True, False) if below else (False,):
            try:
                return self._clone_source(source, attributes, idmap, recursive=recursive)
            except KernelError as error:
                if error.errno != errno.EINVAL or idmap is None:
                    raise
        if stat.S_ISSOCK(os.lstat(source).st_mode):
            # Who may connect anyhow still may.
            return self._clone_source(source, attributes, None, recursive=False)
        raise BoxFailed(
            f"{source}: its file system ({self.fstype(source)}) cannot show the ids of a box (tmpfs can "
            "since Linux 6.3): keep it on another one, or use privileged=True"
        )

    def fstype(self, path: str) -> str:
        """Return the type of the file system that `path` lies on."""
        within = [mount for mount in self._seen if is_within(path, mount.target)]
        return max(within, key=lambda mount: len(mount.target)).fstype if within else "unknown"

    def _clone_source(self, source: str, attributes: int, idmap: int | None, *, recursive: bool) -> int:
        clone = self._doors.clone_tree(source, recursive=recursive)
        try:
            self._doors.set_attributes(clone, attributes, idmap=idmap, recursive=recursive, target=source)
        except BaseException:
            os.close(clone)
            raise
        return clone


def _remove(place: str) -> None:
    """Remove the place of a mount, if it is there."""
    if os.path.lexists(place):
        (os.rmdir if os.path.isdir(place) else os.unlink)(place)
