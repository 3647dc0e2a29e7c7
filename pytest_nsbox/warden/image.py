"""Images in the warden: clones of their layers, made once for a session; what is in an image's root; and the operations
of a plan that are about one.

As with the host's mounts, a clone shows ids through the boxes' map and has no devices. The layers stay flocked as long
as the session has them: the store removes none that somebody uses.
"""

from __future__ import annotations

import errno
import fcntl
import os

from pytest_nsbox.kernel import files, process
from pytest_nsbox.kernel.mount import NODEV, NOSUID, RDONLY
from pytest_nsbox.policy import init_layer
from pytest_nsbox.policy import plan as plans
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.image import ImageFacts, ImageRoot
from pytest_nsbox.real import text_of
from pytest_nsbox.warden.directory import IMAGE_LAYERS, IMAGE_VIEWS
from pytest_nsbox.warden.points import make_mount_point

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pytest_nsbox.policy.plan import Plan
    from pytest_nsbox.warden.session import Session
    from pytest_nsbox.warden.tree import _Builder

# What the kernel takes as one option, fsconfig(2).
_LONGEST_OPTION = 255
_LARGEST_TABLE = 4 << 20
# Of glibc and musl, what two versions of cannot be in one process: the loader and the C library that belongs to it.
_LIBC = ("libc.so", "libc.musl", "ld-linux", "ld-musl", "ld64.so")

Key = tuple[tuple[str, ...], bool, bool]


class Images:
    """The images of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._doors = session.doors
        # By directory, and whether ids are shifted: where its clone is.
        self._clones: dict[tuple[str, bool], str] = {}
        self._views: dict[Key, str] = {}
        self._facts: dict[tuple[Any, ...], ImageFacts] = {}
        self._held: list[int] = []
        self._made: set[str] = set()

    def close(self) -> None:
        """Let go of the layers."""
        for fd in self._held:
            os.close(fd)
        self._held.clear()

    def facts(self, plain: tuple[Any, ...]) -> ImageFacts:
        """Return what a plan must know of the image that `Image.for_box` told as `plain`.

        Raises BoxFailed for one with a C library that is in the way of the interpreter's.
        """
        found = self._facts.get(plain)
        if found is None:
            root = ImageRoot.from_plain(plain)
            layers = tuple(dict.fromkeys(reversed(root.layers)))
            view = files.open_directory(self.view((layers, True, self._session.mode == "shifted")))
            try:
                found = ImageFacts(
                    root=root,
                    passwd=_text_in(view, "etc/passwd"),
                    group=_text_in(view, "etc/group"),
                    missing=tuple(pair for path in root.files for pair in _missing(view, path)),
                    hosts=text_of("/etc/hosts") or init_layer.hosts(),
                    hostname=os.uname().nodename,
                    resolv_conf=text_of("/etc/resolv.conf"),
                )
            finally:
                os.close(view)
            self._facts[plain] = found
        return found

    def prepare(self, plan: Plan) -> None:
        """Make the clones and views that `plan` needs, while we act as ourselves."""
        for op in plan.tree:
            if isinstance(op, plans.OverlayImage):
                self.view((op.directories, op.init, plan.shifted))

    def view(self, key: Key) -> str:
        """Return a directory that shows what (directories, init layer, shifted) are together: read-only."""
        place = self._views.get(key)
        if place is None:
            directories, init, shifted = key
            clones = self._lowers(directories, init=init, shifted=shifted)
            place = self._views[key] = clones[0] if len(clones) == 1 else self._stack(clones, shifted=shifted)
        return place

    def lower_options(self, key: Key) -> list[tuple[str, str | None]]:
        """Return an overlay's options for the same, in the kernel's words."""
        directories, init, shifted = key
        return self._options(self._lowers(directories, init=init, shifted=shifted))

    def _options(self, clones: list[str]) -> list[tuple[str, str | None]]:
        joined = ":".join(clones)
        if len(joined) <= _LONGEST_OPTION:
            return [("lowerdir", joined)]
        if process.kernel_version() < (6, 8):
            raise BoxFailed(f"an image of {len(clones) - 1} layers: more than 49 need Linux 6.8 (squash it)")
        return [("lowerdir+", clone) for clone in clones]

    def _lowers(self, directories: tuple[str, ...], *, init: bool, shifted: bool) -> list[str]:
        clones = [self._clone(directory, shifted=shifted) for directory in directories]
        return [self._init_layer(shifted=shifted), *clones] if init else clones

    def _stack(self, clones: list[str], *, shifted: bool) -> str:
        self._session.act_as(shifted=shifted)
        try:
            mount = self._doors.new_mount("overlay", self._options(clones), RDONLY | NODEV | NOSUID, "image")
        finally:
            self._session.act_as(shifted=False)
        try:
            place = self._place(IMAGE_VIEWS)
            self._doors.attach(mount, place)
        finally:
            os.close(mount)
        return place

    def _place(self, name: str) -> str:
        if name not in self._made:
            self._doors.make_directory(name, 0o700)
            self._made.add(name)
        place = f"{name}/{len(self._clones) if name == IMAGE_LAYERS else len(self._views)}"
        self._doors.make_directory(place)
        return place

    def _clone(self, directory: str, *, shifted: bool) -> str:
        place = self._clones.get((directory, shifted))
        if place is None:
            self._hold(directory)
            place = self._place(IMAGE_LAYERS)
            try:
                self._session.host.attach_clone(directory, place, NODEV if shifted else 0, shifted=shifted)
            except KernelError as error:
                os.rmdir(place)
                if error.errno != errno.EINVAL or not shifted:
                    raise
                raise BoxFailed(
                    f"{directory}: its file system cannot show the ids of a box (tmpfs can since Linux 6.3): keep it "
                    "on another one, or use privileged=True"
                ) from None
            self._clones[directory, shifted] = place
        return place

    def _hold(self, directory: str) -> None:
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._held.append(fd)
            fcntl.flock(fd, fcntl.LOCK_SH)
            if os.stat(directory).st_ino == os.fstat(fd).st_ino:
                return
        except OSError as error:
            raise BoxFailed(f"{directory}: {os.strerror(error.errno or errno.EIO)}") from None
        raise BoxFailed(f"{directory}: the image was removed")

    def _init_layer(self, *, shifted: bool) -> str:
        """Return the layer of mount points that lies on top of every image."""
        place = f"{self._session.layers}/i{int(shifted)}"
        if place not in self._made:
            self._session.act_as(shifted=shifted)
            try:
                self._doors.make_directory(place)
                for name, mode in init_layer.DIRECTORIES:
                    self._doors.make_directory(f"{place}/{name}", mode)
                for name in init_layer.FILES:
                    self._doors.make_file(f"{place}/etc/{name}")
            finally:
                self._session.act_as(shifted=False)
            self._made.add(place)
        return place


def _missing(view: int, path: str) -> list[tuple[str, str]]:
    """Return (host path, path in the box) of the file `path` if the image does not have it. Raises BoxFailed if it has
    another C library there.
    """
    from pytest_nsbox.kernel import mount

    try:
        fd = mount.open_in(view, path, os.O_RDONLY | os.O_NONBLOCK)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return [(os.path.realpath(path), path)]
        raise BoxFailed(f"rootfs: {path}: {error}") from None
    with open(fd, "rb") as theirs, open(path, "rb") as ours:
        same = os.fstat(fd).st_size == os.fstat(ours.fileno()).st_size and theirs.read() == ours.read()
    if not same and os.path.basename(path).startswith(_LIBC):
        raise BoxFailed(
            f"rootfs: {path} of the image is another one than this interpreter runs with: a test's body cannot run "
            "there. Take an image with the same C library or without one; its programs run in a container (nsbox.run)"
        )
    return []


def _text_in(view: int, path: str) -> str:
    """Return the text of a file of the image, "" if it has none."""
    from pytest_nsbox.kernel import mount

    try:
        fd = mount.open_in(view, path, os.O_RDONLY | os.O_NONBLOCK)
    except KernelError:
        return ""
    with open(fd, encoding="utf-8", errors="replace") as file:
        try:
            return file.read(_LARGEST_TABLE)
        except OSError:
            return ""


def _overlay(builder: _Builder, op: plans.OverlayImage) -> None:
    images, key = builder.session.images, (op.directories, op.init, builder.shifted)
    builder.put_overlay(op.number, op.target, images.view(key), images.lower_options(key))


def _bind_init(builder: _Builder, op: plans.BindInit) -> None:
    tree, doors = builder.tree, builder.doors
    name = op.target.rpartition("/")[2]
    path = op.source or tree.init_file(name)
    tree.init_paths[name] = path
    if not op.source:
        if not tree.init_files:
            doors.make_directory(f"{tree.scratch}/init")
        tree.init_files.append(name)
        doors.make_file(path)
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(op.text)
    try:
        builder.put(doors.clone_tree(path), op.target, directory=False)
    except KernelError as error:
        # The host's is a link to nothing: there is no place to bind at, and nothing to hide.
        if error.errno != errno.EEXIST or tree.plan.image:
            raise


def _make_workdir(builder: _Builder, op: plans.MakeWorkdir) -> None:
    builder.tree.made |= make_mount_point(builder.doors, builder.root, op.path, directory=True)


PERFORM: dict[type, Callable[[Any, Any], None]] = {
    plans.OverlayImage: _overlay,
    plans.BindInit: _bind_init,
    plans.MakeWorkdir: _make_workdir,
}
