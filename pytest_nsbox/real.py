"""The real ``os``, for code that runs in pytest's process between and during tests.

pyfakefs replaces the ``os`` module, and functions of it, in the globals of every module while a fixture of its is
active; some suites have one of module or session scope. An object that is neither a module nor a function is left
alone, so ``from pytest_nsbox.real import os`` keeps the kernel's files.
"""

from __future__ import annotations

import os as _os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os as os  # noqa: PLC0414 - exported
else:

    class _Real:
        def __init__(self, module):
            self.__dict__.update(vars(module))

    os = _Real(_os)

# Only this module would still hold what pyfakefs looks for.
del _os


def read_bytes(path: str) -> bytes:
    """A file's bytes. Not by ``open`` or ``os.fdopen``, which a suite replaces: pyfakefs knows no real descriptors."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts)


def read_text(path: str) -> str:
    """A file's text."""
    return read_bytes(path).decode("utf-8", "surrogateescape")


def text_of(path: str) -> str:
    """A file's text, "" if it cannot be read."""
    try:
        return read_text(path)
    except OSError:
        return ""
