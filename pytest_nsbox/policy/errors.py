"""Every exception of the package. All of them survive pickling; none of them needs an import."""

from __future__ import annotations


class SandboxError(Exception):
    """What went wrong with a test's box, told in ``str()``; the first line is the whole fact, hints follow."""

    @property
    def headline(self) -> str:
        """The first line, such as ``killed by SIGSEGV``."""
        return str(self).partition("\n")[0]


class SandboxOOM(SandboxError):  # noqa: N818  # the public interface names it so
    """The test was killed by its memory limit."""


class SandboxTimeout(SandboxError):  # noqa: N818  # as above
    """The test was killed because its wall clock ran out."""


class SandboxCrash(SandboxError):  # noqa: N818  # as above
    """The test's process ended before the test did: by a signal or by ``os._exit``."""


class BoxFailed(SandboxError):  # noqa: N818  # as above
    """A box could not be made or entered, or a command in one failed under ``check=True``."""


class ImageError(BoxFailed):
    """An image that cannot be found, read or kept. The text names the archive, the entry in it, and what would do."""


# Tracebacks and xfail(raises=...) speak of the names that users import.
for _public in (SandboxError, SandboxOOM, SandboxTimeout, SandboxCrash, BoxFailed):
    _public.__module__ = "pytest_nsbox"


class BadValueError(ValueError):
    """A value that a parser refuses.

    ``reason`` is a clause about the value (``not a size``), ``accepted`` tells what would do.
    """

    def __init__(self, reason: str, accepted: str = "") -> None:
        super().__init__(reason, accepted)
        self.reason = reason
        self.accepted = accepted

    def __str__(self) -> str:
        return f"{self.reason} (accepted: {self.accepted})" if self.accepted else self.reason


class SpecError(ValueError):
    """One thing wrong with a box's description.

    ``key`` and ``value`` (its repr, or "" where the key itself is wrong) are what was written, ``accepted`` what would
    be taken, ``place`` where it was written (``sandbox marker``, ``--sandbox-set``, ...; may be "").
    """

    def __init__(self, key: str, value: str, accepted: str, reason: str, place: str = "") -> None:
        super().__init__(key, value, accepted, reason, place)
        self.key = key
        self.value = value
        self.accepted = accepted
        self.reason = reason
        self.place = place

    def __str__(self) -> str:
        # Without a value the reason names the key itself: "unknown key 'memmory' (...)".
        said = f"{self.key}={self.value}: {self.reason}" if self.value else self.reason
        hint = f" (accepted: {self.accepted})" if self.accepted else ""
        return f"{self.place}: {said}{hint}" if self.place else f"{said}{hint}"


class SpecProblems(ValueError):  # noqa: N818  # it carries errors, it is not one more
    """Everything that is wrong with one description at once; ``problems`` holds each as a SpecError."""

    def __init__(self, problems: tuple[SpecError, ...]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class KernelError(Exception):
    """A system call, or a write to a kernel file, that failed: ``mount tmpfs /tmp: Operation not permitted``.

    Not an OSError: nothing that handles a test's own file errors may swallow it. ``target`` may be "".
    """

    def __init__(self, call: str, target: str, errno: int) -> None:
        super().__init__(call, target, errno)
        self.call = call
        self.target = target
        self.errno = errno

    def __str__(self) -> str:
        what = f"{self.call} {self.target}" if self.target else self.call
        return f"{what}: {ERRNO_TEXTS.get(self.errno) or f'errno {self.errno}'}"


# errno(3) with glibc's texts: os.strerror would need the os module, and the numbers are those of Linux on every
# architecture that Python packages are built for.
ERRNO_TEXTS = {
    1: "Operation not permitted",
    2: "No such file or directory",
    3: "No such process",
    4: "Interrupted system call",
    5: "Input/output error",
    6: "No such device or address",
    7: "Argument list too long",
    8: "Exec format error",
    9: "Bad file descriptor",
    10: "No child processes",
    11: "Resource temporarily unavailable",
    12: "Cannot allocate memory",
    13: "Permission denied",
    14: "Bad address",
    15: "Block device required",
    16: "Device or resource busy",
    17: "File exists",
    18: "Invalid cross-device link",
    19: "No such device",
    20: "Not a directory",
    21: "Is a directory",
    22: "Invalid argument",
    23: "Too many open files in system",
    24: "Too many open files",
    25: "Inappropriate ioctl for device",
    26: "Text file busy",
    27: "File too large",
    28: "No space left on device",
    29: "Illegal seek",
    30: "Read-only file system",
    31: "Too many links",
    32: "Broken pipe",
    34: "Numerical result out of range",
    35: "Resource deadlock avoided",
    36: "File name too long",
    38: "Function not implemented",
    39: "Directory not empty",
    40: "Too many levels of symbolic links",
    61: "No data available",
    75: "Value too large for defined data type",
    87: "Too many users",
    90: "Message too long",
    92: "Protocol not available",
    93: "Protocol not supported",
    95: "Operation not supported",
    97: "Address family not supported by protocol",
    98: "Address already in use",
    99: "Cannot assign requested address",
    100: "Network is down",
    101: "Network is unreachable",
    104: "Connection reset by peer",
    107: "Transport endpoint is not connected",
    110: "Connection timed out",
    111: "Connection refused",
    116: "Stale file handle",
    117: "Structure needs cleaning",
    122: "Disk quota exceeded",
}


def are_shown_at_the_caller(excinfo: object) -> bool:
    """As ``__tracebackhide__`` of a module: pytest shows the line of the test that asked for something, and not
    where in the module the answer was no. ``--full-trace`` shows that too.
    """
    return isinstance(getattr(excinfo, "value", None), (SandboxError, SpecError, SpecProblems, BadValueError))
