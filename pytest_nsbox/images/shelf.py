"""What the store has on its shelves: names, images and layers, put there whole and taken away when unused."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from typing import TYPE_CHECKING, Any

from pytest_nsbox.images import aside, locks, oci
from pytest_nsbox.images.frames import FILES, replay
from pytest_nsbox.images.unpacking import unpack_layer
from pytest_nsbox.policy.errors import BoxFailed, ImageError
from pytest_nsbox.policy.image import Image, ImageConfig, read_config

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from filelock import BaseFileLock

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(:[0-9]+)?(/[A-Za-z0-9._-]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?")
_ID = re.compile(r"(sha256:)?[0-9a-f]{12,64}")
_NAME_TEXT = "letters, digits and '._-', with '/' and ':TAG' as in Docker"


class Shelf:
    """The store's directory, see `store`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def images(self) -> list[Image]:
        """Return all images that are kept, by name."""
        try:
            ids = os.listdir(f"{self.path}/images")
        except FileNotFoundError:
            return []
        images = [self.load(value) for value in ids]
        return sorted(
            (image for image in images if image is not None), key=lambda image: (image.names or ("~",), image.id)
        )

    def named(self, wanted: str) -> Image | None:
        value = self.names().get(with_tag(wanted))
        if value is None and _ID.fullmatch(wanted):
            digits = wanted.removeprefix("sha256:")
            matching = [image for image in self.images() if image.id.startswith(f"sha256:{digits}")]
            if len(matching) > 1:
                raise ImageError(f"{wanted} is the beginning of {len(matching)} images' ids: give more of it")
            return matching[0] if matching else None
        return self.load(value) if value is not None else None

    def names(self) -> dict[str, str]:
        return read_json(f"{self.path}/names")

    def state(self) -> tuple[int, int]:
        """Return numbers that change when an image is named, or taken away."""
        try:
            at = os.stat(f"{self.path}/names")
        except FileNotFoundError:
            return 0, 0
        return at.st_ino, at.st_mtime_ns

    def load(self, value: str) -> Image | None:
        """Return the image of the id `value` (hex), or None if it is not kept, or not completely."""
        try:
            with open(f"{self.path}/images/{value}", "rb") as file:
                config = json.load(file)
            ids = oci.diff_ids(config, value)
            size = sum(int(_read(f"{self.path}/layers/{digits}/size")) for digits in ids)
        except FileNotFoundError:
            return None
        names = tuple(sorted(name for name, known in self.names().items() if known == value))
        layers = tuple(f"{self.path}/layers/{digits}/{FILES}" for digits in ids)
        return Image(id=f"sha256:{value}", names=names, layers=layers, config=_config_of(config), size=size)

    def document(self, image: Image) -> dict[str, Any]:
        """Return the whole config of a kept image, as JSON values."""
        found: dict[str, Any] = json.loads(self.config_bytes(image))
        return found

    def config_bytes(self, image: Image) -> bytes:
        with open(f"{self.path}/images/{image.id.removeprefix('sha256:')}", "rb") as file:
            return file.read()

    def unpack(self, chunks: Iterator[bytes], name: str, wanted: str | None, held: contextlib.ExitStack) -> str:
        """Unpack a layer aside, check that it is the one that was `wanted`, and put it in its place; return its hex."""
        self.make()
        with aside.directory(f"{self.path}/new") as directory:
            digits = unpack_layer(chunks, directory, name)
            if wanted is not None and digits != wanted:
                raise ImageError(
                    f"{name}: its content has the digest sha256:{digits}, and sha256:{wanted} was promised"
                )
            while not self.hold(digits, held):
                with self.changing():
                    if not os.path.exists(f"{self.path}/layers/{digits}"):
                        os.rename(directory, f"{self.path}/layers/{digits}")
        return digits

    def hold(self, digits: str, held: contextlib.ExitStack) -> bool:
        """Keep a layer from being removed for as long as `held` lasts; False if there is none."""
        path = f"{self.path}/layers/{digits}/{FILES}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_SH)
            return os.stat(path).st_ino == os.fstat(fd).st_ino
        except FileNotFoundError:
            return False

    def hold_all(self, layers: Collection[str], held: contextlib.ExitStack) -> bool:
        """Hold several layers; False if one is missing."""
        return sum([self.hold(digits, held) for digits in layers]) == len(layers)

    def register(self, config: bytes) -> Image:
        value = hashlib.sha256(config).hexdigest()
        _config_of(json.loads(config))
        _write(f"{self.path}/images/{value}", config, self.temporary())
        image = self.load(value)
        if image is None:
            raise ImageError(f"image {value[:12]} was removed while it was imported")
        return image

    def replayed(self, digits: str) -> Iterator[bytes]:
        fd = os.open(f"{self.path}/layers/{digits}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield from replay(fd, f"layer {digits[:12]}")
        finally:
            os.close(fd)

    # --- names, and the end

    def give_names(self, image: Image, names: Collection[str]) -> None:
        if not names:
            return
        with self.changing():
            known = self.names()
            known.update({with_tag(name): image.id.removeprefix("sha256:") for name in names})
            write_json(f"{self.path}/names", known, self.temporary())

    def sweep(self) -> None:
        """Remove layers that no image has and nothing uses, and what killed processes left."""
        if not os.path.isdir(self.path):
            return
        with self.changing():
            # From the files, not from the images: one whose layer is missing still has the others.
            used: set[str] = set()
            for value in os.listdir(f"{self.path}/images"):
                config = read_json(f"{self.path}/images/{value}")
                used.update(oci.diff_ids(config, value))
            for digits in os.listdir(f"{self.path}/layers"):
                if digits not in used:
                    self._discard(digits)
        aside.sweep(f"{self.path}/new")

    def _discard(self, digits: str) -> None:
        fd = os.open(f"{self.path}/layers/{digits}/{FILES}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(f"{self.path}/layers/{digits}", self.temporary())
        except BlockingIOError:
            # A box, or an import, has it.
            return
        finally:
            os.close(fd)

    # --- its directory

    def make(self) -> None:
        """Make the store. Nobody else may enter it: images hold setuid programs."""
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path, 0o700)
            for name in ("images", "layers", "locks", "new", "sources"):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(f"{self.path}/{name}", 0o700)
            at = os.stat(self.path)
        except OSError as error:
            raise ImageError(f"{self.path}: the store cannot be made: {os.strerror(error.errno or 0)}") from None
        if at.st_uid != os.geteuid() or at.st_mode & 0o077:
            raise ImageError(f"{self.path}: the store must be {os.geteuid()}'s alone (mode 0700)")

    def changing(self) -> BaseFileLock:
        self.make()
        return locks.changing(self.path)

    def temporary(self) -> str:
        return f"{self.path}/new/{os.getpid()}-{os.urandom(6).hex()}"


def check_name(name: object) -> None:
    """Refuse what cannot be an image's name. Raises ImageError."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or _ID.fullmatch(name):
        raise ImageError(f"{name!r} is no name of an image (accepted: {_NAME_TEXT})")


def with_tag(name: str) -> str:
    """Return the name as it is kept: with a tag, and without the parts that docker leaves out when it shows one."""
    name = name.removeprefix("docker.io/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _config_of(document: dict[str, Any]) -> ImageConfig:
    given = document.get("config") or {}
    if not isinstance(given, dict):
        raise ImageError(f"the image's config has config {given!r}: a table is expected")
    try:
        return read_config(given)
    except BoxFailed as error:
        raise ImageError(str(error)) from None


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def read_json(path: str) -> dict[str, Any]:
    try:
        found = json.loads(_read(path))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: str, value: object, temporary: str) -> None:
    _write(path, json.dumps(value).encode(), temporary)


def _write(path: str, content: bytes, temporary: str) -> None:
    """Put a whole file in place of another."""
    with open(temporary, "xb") as file:
        file.write(content)
    os.rename(temporary, path)
