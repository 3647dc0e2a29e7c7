"""The store of images: below the user's cache directory, addressed by content, shared by all runs.

    lock           held (filelock) while names change and while layers come and go
    locks/<key>    one import at a time of the same thing
    new/<random>/  what is being unpacked, and what is being removed; swept when its maker is dead
    layers/<hex>/  one layer, by the sha256 of its tar: fs/ as overlayfs reads it, frames and replaced/ to give the tar
                   back, size
    images/<hex>   an image's config, by its own sha256
    names          JSON: {name: hex}
    sources/<key>  JSON: what a path held when it was imported last

A layer is unpacked aside and renamed when it is whole, so whatever is found by its name is complete. Its directory fs/
is flocked (shared) by whoever uses it; it is removed only under an exclusive lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from pytest_nsbox.images import archives, locks, oci
from pytest_nsbox.images.packing import Packer
from pytest_nsbox.images.shelf import NAME, Shelf, check_name, read_json, with_tag, write_json
from pytest_nsbox.images.streams import read_all
from pytest_nsbox.policy.errors import ImageError
from pytest_nsbox.policy.image import Image

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_nsbox.policy.image import ImageConfig


def default_path() -> str:
    """Return where the user's store lies: in XDG_CACHE_HOME, else in ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    base = cache if os.path.isabs(cache) else os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "pytest-nsbox")


class Store(Shelf):
    """The store at `path` (None: the user's). Nothing is made before something is kept."""

    def __init__(self, path: str | None = None) -> None:
        super().__init__(path or default_path())

    # --- looking up

    def find(self, wanted: str, rootdir: str = "/") -> Image:
        """Return the image `wanted`: a name, an id (12 digits of it do), a directory (used where it is), or an archive
        or a layout, which is imported unless it was before. Relative paths start at `rootdir`.

        Raises ImageError.
        """
        path = os.path.realpath(os.path.join(rootdir, wanted))
        if not wanted.startswith(("/", ".")):
            found = self.named(wanted)
            if found is not None:
                return found
            if not os.path.exists(_without_reference(path)):
                names = ", ".join(sorted(self.names())) or "none yet"
                raise ImageError(f"no image {wanted!r} (images: {names}; a path has '/' or '.' in front)")
        if os.path.isdir(path) and not os.path.isfile(f"{path}/oci-layout"):
            return Image(layers=(path,))
        return self._imported(path)

    # --- taking in

    def add(self, path: str, name: str | None = None) -> Image:
        """Import a directory, a tar, an archive of docker save or an OCI layout (PATH:NAME: one of its images); name
        it `name`, else as the archive does. Raises ImageError.
        """
        if name is not None:
            check_name(name)
        image = self._imported(os.path.realpath(path), copy=True)
        if name is not None:
            self.give_names(image, [name])
        found = self.load(image.id.removeprefix("sha256:"))
        assert found is not None
        return found

    def _imported(self, whole: str, *, copy: bool = False) -> Image:
        path = _without_reference(whole)
        reference = whole[len(path) + 1 :]
        if not os.path.exists(path):
            raise ImageError(f"{path}: there is no such file or directory")
        key = hashlib.sha256(os.fsencode(whole)).hexdigest()
        state = _state(path)
        found, names = self._known(key, state)
        if found is None:
            self.make()
            with locks.importing(self.path, key):
                found, names = self._known(key, state)
                if found is None:
                    found, names = self._import(path, reference)
                    known = {"state": state, "id": found.id, "names": names}
                    write_json(f"{self.path}/sources/{key}", known, self.temporary())
        if copy:
            self.give_names(found, names)
        return found

    def _known(self, key: str, state: list[int]) -> tuple[Image | None, list[str]]:
        """Return the image that a source gave when it was as it is now, and its names there."""
        known = read_json(f"{self.path}/sources/{key}")
        if not state or known.get("state") != state:
            return None, []
        return self.load(str(known.get("id")).removeprefix("sha256:")), known["names"]

    def _import(self, path: str, reference: str) -> tuple[Image, list[str]]:
        layout = archives.open_layout(path, self.temporary())
        if layout is None:
            if reference:
                raise ImageError(f"{path}: a root filesystem has no image {reference!r}")
            return self._import_root(path), []
        try:
            found = oci.read_image(layout, reference)
            image = self._keep(found, layout)
        finally:
            layout.close()
        return image, [name for name in found.names if NAME.fullmatch(name)]

    def _import_root(self, path: str) -> Image:
        with contextlib.ExitStack() as held:
            if os.path.isdir(path):
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                held.callback(os.close, fd)
                chunks = Packer(path).pack(fd)
            else:
                chunks = read_all(held.enter_context(archives.open_file(path)))
            digits = self.unpack(chunks, path, None, held)
            return self.register(_new_config([digits], {}, [f"nsbox image import {os.path.basename(path)}"]))

    def _keep(self, found: oci.Found, layout: archives.Layout) -> Image:
        with contextlib.ExitStack() as held:
            for blob, digits in found.layers:
                if not self.hold(digits, held):
                    with contextlib.closing(layout.open(blob)) as file:
                        self.unpack(read_all(file), f"{layout.name}: {blob}", digits, held)
            return self.register(found.config)

    def commit(  # noqa: PLR0913  # keyword arguments, for one caller
        self,
        parent: Image | None,
        upper: int,
        *,
        merged: int,
        root_id: int = 0,
        leave_out: Collection[str] = (),
        name: str | None = None,
        config: ImageConfig | None = None,
    ) -> Image:
        """Keep what a box changed as a layer on `parent`, and return the image. Raises ImageError.

        upper      the overlay's upper directory, a descriptor
        merged     the overlay itself, for directories that were renamed
        root_id    host id that files of the box's root have
        leave_out  absolute paths in the box that are not part of the image (mount points, the init layer)
        config     replaces the parent's
        """
        if name is not None:
            check_name(name)
        if parent is not None and not parent.id:
            parent = self.add(parent.layers[0])
        self.make()
        what = f"commit of {name or 'a box'}"
        left = [os.fsencode(path) for path in leave_out]
        packer = Packer(what, {root_id: 0}, left, upper=True, merged=lambda path: archives.open_directory(merged, path))
        below = self.document(parent) if parent is not None else {}
        ids = oci.diff_ids(below, what) if below else []
        with contextlib.ExitStack() as held:
            if not self.hold_all(ids, held):
                raise ImageError(f"{what}: its image was removed meanwhile")
            ids.append(self.unpack(packer.pack(upper), what, None, held))
            shown = config.shown() if config is not None else below.get("config", {})
            image = self.register(_new_config(ids, shown, [*_history(below), "nsbox commit"]))
        self.give_names(image, [name] if name is not None else [])
        return self.load(image.id.removeprefix("sha256:")) or image

    # --- giving out

    def export(self, image: Image, directory: str, name: str | None = None) -> None:
        """Write `image` as an OCI layout into `directory`, which must be empty or missing. Raises ImageError."""
        if not image.id:
            image = self.add(image.layers[0])
        try:
            os.makedirs(directory, exist_ok=True)
            if os.listdir(directory):
                raise ImageError(f"{directory}: not empty")
        except OSError as error:
            raise ImageError(f"{directory}: {os.strerror(error.errno or 0)}") from None
        ids = oci.diff_ids(self.document(image), image.id)
        names = [name] if name else list(image.names)
        with contextlib.ExitStack() as held:
            if not self.hold_all(ids, held):
                raise ImageError(f"{image.id}: was removed meanwhile")
            layers = ((digits, self.replayed(digits)) for digits in ids)
            oci.write_layout(directory, self.config_bytes(image), layers, with_tag(names[0]) if names else "")

    # --- names, and the end

    def remove(self, wanted: str) -> Image:
        """Forget the name `wanted`; with its last name or by its id the image goes, and the layers that no other image
        has. Layers that a box uses stay until `sweep`. Return what it was.
        """
        image = self.named(wanted)
        if image is None:
            names = ", ".join(sorted(self.names())) or "none"
            raise ImageError(f"no image {wanted!r} (images: {names})")
        value = image.id.removeprefix("sha256:")
        with self.changing():
            known = self.names()
            known.pop(with_tag(wanted), None)
            if with_tag(wanted) not in image.names:
                known = {name: other for name, other in known.items() if other != value}
            write_json(f"{self.path}/names", known, self.temporary())
            if value not in known.values():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self.path}/images/{value}")
        self.sweep()
        return image


def _without_reference(path: str) -> str:
    """Return PATH of "PATH:NAME" if there is only that."""
    if os.path.exists(path):
        return path
    shorter = path
    while ":" in shorter:
        shorter = shorter.rpartition(":")[0]
        if os.path.exists(shorter):
            return shorter
    return path


def _state(path: str) -> list[int]:
    """Return numbers that change when what `path` holds does; none for a directory that is a root itself."""
    if os.path.isdir(path):
        if not os.path.isfile(f"{path}/oci-layout"):
            return []
        path = f"{path}/index.json"
    at = os.stat(path)
    return [at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns]


def _new_config(ids: list[str], config: Any, history: list[str]) -> bytes:
    """Return the bytes of a config. Without dates: the same layers make the same image."""
    document = {
        "architecture": oci.architecture(),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digits}" for digits in ids]},
        "history": [{"created_by": text} for text in history],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _history(document: dict[str, Any]) -> list[str]:
    return [str(row.get("created_by", "")) for row in document.get("history") or [] if isinstance(row, dict)]
