"""The terminal's foreground: a test that reads from it must be there, or the kernel stops its process (SIGTTIN).

A test has a process group of its own, which starts in the background. It comes to the front when it may speak with the
user: from the start with ``-s`` or ``--pdb``, else when a debugger starts. Source: termios(3), tcsetpgrp(3).
"""

from __future__ import annotations

import contextlib
import signal

from pytest_nsbox.real import os


class Terminal:
    """The controlling terminal of a pytest that runs in its foreground; otherwise nothing, and all calls do nothing.

    Opened by its name: under capture descriptor 0 is not the terminal.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._given = False
        with contextlib.suppress(OSError):
            self._fd = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
            if os.tcgetpgrp(self._fd) != os.getpgrp():
                self.close()

    def is_there(self) -> bool:
        """Whether there is one."""
        return self._fd >= 0

    def take(self) -> None:
        """Bring the calling process's group to the front."""
        if self._fd < 0:
            return
        # In the background this call is answered by SIGTTOU, unless that is blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            with contextlib.suppress(OSError):  # the terminal hung up
                os.tcsetpgrp(self._fd, os.getpgrp())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stay_behind(self) -> None:
        """In a child that stays in the background: to set the terminal (getpass does) must not stop it for ever."""
        if self._fd >= 0:
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            signal.signal(signal.SIGTTIN, signal.SIG_IGN)

    def give(self) -> None:
        """In pytest's process: a child may have taken it."""
        self._given = True

    def take_back(self) -> None:
        """In pytest's process: be in front again, if a child was."""
        if self._given:
            self._given = False
            self.take()

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
