"""Starts a warden's process. Imports next to nothing: it is done before pytest knows what it will collect."""

from __future__ import annotations

import _socket
import sys
from contextlib import suppress

from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.real import os

# What a terminal or its user sends to all of pytest.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_BOOT = "import sys; sys.path.append(sys.argv[1]); from pytest_nsbox.warden.server import main; main(int(sys.argv[2]))"


class Spawned:
    """A warden's process that nobody has told anything yet: its pid, and our end of the socket."""

    def __init__(self, pid: int, sock: _socket.socket) -> None:
        self.pid = pid
        self.sock = sock
        self.taken = False  # a client talks to it, and will end it

    def discard(self) -> None:
        """Have it end if it is nobody's."""
        if self.taken:
            return
        self.taken = True
        self.sock.close()
        with suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def spawn() -> Spawned:
    """Start a warden; it imports its modules while pytest goes on. OSError if it cannot be started."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    package_parent = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    try:
        os.set_inheritable(theirs.fileno(), True)
        command = [sys.executable, "-I", "-S", "-c", _BOOT, package_parent, str(theirs.fileno())]
        null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1)]
        environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
        # Some interpreters are linked with libraries that are found by it alone.
        if "LD_LIBRARY_PATH" in os.environ:
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        # Ctrl-C is for pytest alone, from the warden's first moment on.
        pid = os.posix_spawn(
            sys.executable,
            command,
            environment,
            file_actions=null,
            setsid=True,
            setsigmask=SIGNALS,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return Spawned(pid, ours)
