"""What of this process must be in the root of an image, for a test's body to run there: the interpreter, what it
imports, the tests.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsbox.images import elf
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.hostmounts import is_within

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# A root's own. Shown from the host they would hide what the image has there.
_SYSTEM = frozenset(
    (
        "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/media",
        "/mnt", "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin",
        "/usr/include", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/local",
        "/usr/local/bin", "/usr/local/lib", "/usr/local/lib64", "/usr/local/share", "/usr/sbin",
        "/usr/share", "/var", "/var/lib", "/var/tmp",
    )
)  # fmt: skip
# Of those, what can be a project's own: no image has much there.
_HOMES = frozenset(("/home", "/mnt", "/opt", "/root", "/srv", "/tmp", "/var/tmp"))


class Needed(NamedTuple):
    """Directories, and files that are needed only where the image has none; absolute, without links."""

    directories: tuple[str, ...]
    files: tuple[str, ...]


def needed(rootdir: str) -> Needed:
    """Return what a box with an image's root shows of the host. Raises BoxFailed for a `rootdir` of the system's."""
    if rootdir in _SYSTEM - _HOMES:
        raise BoxFailed(
            f"rootfs: pytest's rootdir is {rootdir}: shown in the image it would hide the image's own; keep the tests "
            "in a directory below it"
        )
    return _find(rootdir, tuple(path for path in sys.path if path))


@functools.lru_cache(maxsize=8)
def _find(rootdir: str, search: tuple[str, ...]) -> Needed:
    directories: list[str] = [rootdir]
    files: list[str] = []
    for path in (*search, *_standard_library(), *_prefixes(), *_packages()):
        # A package in a zip file is a file.
        (directories if os.path.isdir(path) else files).append(path)
    kept = _outermost((os.path.realpath(path) for path in directories), os.path.realpath(rootdir))
    files = [path for path in files if os.path.isfile(path)]
    executable = os.path.realpath(sys.executable)
    places = _outermost((*search, *_standard_library()), "")
    libraries = elf.closure([executable, *(file for top in places for file in _libraries(top))], _loaded())
    wanted = {executable, *files, *libraries}
    return Needed(kept, tuple(sorted(path for path in wanted if not any(is_within(path, top) for top in kept))))


def _standard_library() -> list[str]:
    return [path for name in ("stdlib", "platstdlib") if (path := sysconfig.get_path(name))]


def _prefixes() -> list[str]:
    """A virtual environment, or an interpreter that lies in a directory of its own."""
    return [path for path in (sys.prefix, sys.base_prefix) if os.path.realpath(path) not in _SYSTEM]


def _packages() -> list[str]:
    """Return where modules came from that no search path leads to (editable installs, import hooks)."""
    found = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and os.path.isabs(file):
            directory = os.path.dirname(file)
            depth = name.count(".") + (1 if os.path.basename(file).startswith("__init__.") else 0)
            for _ in range(depth - 1):
                directory = os.path.dirname(directory)
            found.add(directory)
    return sorted(found)


def _outermost(paths: Iterable[str], rootdir: str) -> tuple[str, ...]:
    kept: list[str] = []
    for path in sorted(set(paths), key=len):
        if (path not in _SYSTEM or path == rootdir) and not any(is_within(path, top) for top in kept):
            kept.append(path)
    return tuple(kept)


def _libraries(directory: str) -> Iterator[str]:
    """Yield the extension modules and libraries below `directory`; a Python package has no hidden directories."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith((".", "__pycache__")):
                        yield from _libraries(entry.path)
                elif entry.name.endswith(".so") or ".so." in entry.name:
                    yield entry.path
    except OSError:
        return


def _loaded() -> list[str]:
    """Return the libraries in memory. Source: proc_pid_maps(5)."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        paths = {line.split(None, 5)[5].rstrip("\n") for line in file if line.count(" ") >= 5 and "/" in line}
    return [path for path in paths if ".so" in os.path.basename(path)]
