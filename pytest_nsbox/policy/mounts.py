"""Volumes and tmpfs mounts: from ``"SRC:DST[:ro]"`` and ``"DST[:SIZE]"`` to records.

A path may hold colons itself. The target is absolute, so the last ``:/`` is where it begins, whatever colons come
before or after; a path that even this misreads can be written as a list, ``["SRC", "DST", "ro"]``, or for tmpfs as a
table, ``{"DST": SIZE}``.
"""

from __future__ import annotations

from pytest_nsbox.policy.errors import BadValueError
from pytest_nsbox.policy.record import record
from pytest_nsbox.policy.units import parse_positive_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

VOLUMES = "a list of 'SRC:DST[:ro]' or ['SRC', 'DST', 'ro'], with DST an absolute path"
TMPFS = "a list of 'DST[:SIZE]' or a table {'DST': SIZE}, with DST an absolute path"

# Docker has more; to take one of them for the end of a path would mount in a strange place without a word.
_FOREIGN_OPTIONS = frozenset(("z", "Z", "nocopy", "cached", "delegated", "consistent", "shared", "slave", "private"))
# Those of tmpfs(5), and of docker run --tmpfs.
_TMPFS_OPTIONS = frozenset(("size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "huge", "mpol", "ro", "rw"))
_TMPFS_OPTIONS |= {no + option for option in ("exec", "suid", "dev") for no in ("", "no")}


@record
class Volume:
    """A mount of the host (``kind`` "bind", ``source`` a path) or of a named volume ("volume", a name)."""

    source: str
    target: str
    readonly: bool = False
    kind: str = "bind"


@record
class Tmpfs:
    """A tmpfs at ``target`` of at most ``size`` bytes (None: the kernel's default, half of the memory)."""

    target: str
    size: int | None = None


def parse_volumes(value: object) -> tuple[Volume, ...]:
    """Volumes of a list of entries, or of one entry."""
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(parse_volume(entry) for entry in entries)


def parse_volume(value: object) -> Volume:
    """One volume of ``"SRC:DST[:ro|:rw]"`` or of a list of the same two or three parts."""
    if isinstance(value, (list, tuple)):
        parts = [as_text(part) for part in value]
        if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
            raise BadValueError("not a volume", VOLUMES)
        return _volume(parts[0], parts[1], readonly=parts[2:] == ["ro"])
    text = as_text(value)
    rest, colon, option = text.rpartition(":")
    if colon and option in ("ro", "rw") and ":/" in rest:
        text, readonly = rest, option == "ro"
    elif colon and option and set(option.split(",")) & (_FOREIGN_OPTIONS | {"ro", "rw"}):
        raise BadValueError(f"the option {option!r} is not known here", VOLUMES)
    else:
        readonly = False
    source, colon, target = text.rpartition(":/")
    if not colon:
        raise BadValueError("no absolute DST", VOLUMES)
    return _volume(source, "/" + target, readonly=readonly)


def _volume(source: str, target: str, *, readonly: bool) -> Volume:
    check_target(target, VOLUMES)
    if not source:
        raise BadValueError("no SRC", VOLUMES)
    if "\0" in source:
        raise BadValueError("a path with a NUL character", VOLUMES)
    if source.startswith(("/", ".")):
        # A relative path keeps its "./", so that it does not read as a name.
        return Volume(tidy(source) if source[0] == "/" else f"./{tidy(source)}", tidy(target), readonly, "bind")
    if not all(char.isascii() and (char.isalnum() or char in "_.-") for char in source):
        raise BadValueError(
            f"{source!r} is no name of a volume",
            "a SRC with '/' or '.' in front for a path; letters, digits, _ . - for a name",
        )
    return Volume(source, tidy(target), readonly, "volume")


def parse_tmpfs(value: object) -> tuple[Tmpfs, ...]:
    """Mounts of a list of ``"DST[:SIZE]"``, of one such text, or of a table of sizes (None: no cap of its own)."""
    if isinstance(value, dict):
        return _tmpfs_table(value)
    if not isinstance(value, (list, tuple)):
        return (_tmpfs_text(as_text(value)),)
    found: list[Tmpfs] = []
    for entry in value:
        found += _tmpfs_table(entry) if isinstance(entry, dict) else (_tmpfs_text(as_text(entry)),)
    return tuple(found)


def _tmpfs_table(table: Mapping[object, object]) -> tuple[Tmpfs, ...]:
    return tuple(_tmpfs(as_text(target), size) for target, size in table.items())


def _tmpfs_text(text: str) -> Tmpfs:
    target, colon, size = text.rpartition(":")
    if colon and "/" not in size:
        if size[:1].isdigit():
            return _tmpfs(target, size)
        if {option.partition("=")[0] for option in size.split(",")} <= _TMPFS_OPTIONS:
            raise BadValueError(f"{size!r} is as mount and Docker have it: a SIZE alone is read here", TMPFS)
    return _tmpfs(text, None)


def _tmpfs(target: str, size: object) -> Tmpfs:
    check_target(target, TMPFS)
    # size=0 would mean "no limit" to the kernel, tmpfs(5).
    return Tmpfs(tidy(target), None if size is None else parse_positive_size(size))


def check_target(path: str, accepted: str) -> None:
    """Refuse a mount point that is no plain absolute path below the root."""
    if not path.startswith("/"):
        raise BadValueError(f"{path!r} is not an absolute path", accepted)
    if "\0" in path:
        raise BadValueError("a path with a NUL character", accepted)
    parts = path.split("/")
    if ".." in parts:
        raise BadValueError(f"'..' in the mount point {path!r}", accepted)
    if not any(part not in ("", ".") for part in parts):
        raise BadValueError("the root itself cannot be mounted over", accepted)


def tidy(path: str) -> str:
    """``path`` without doubled slashes, ``.`` parts and a slash at the end; ``..`` stays, it may cross a link."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts)


def as_text(value: object) -> str:
    """A str, or the str of a path object; BadValueError for all else."""
    if isinstance(value, str):
        return value
    path = getattr(value, "__fspath__", None)
    text = path() if path is not None else None
    if not isinstance(text, str):
        raise BadValueError("not a text or a path")
    return text
