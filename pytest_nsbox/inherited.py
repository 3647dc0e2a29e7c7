"""What a forked test inherits and must not take for its own: processes that outer fixtures started."""

from __future__ import annotations

import sys
from typing import Any


class NotInThisBoxError(RuntimeError):
    """The test waits for a process that runs outside its box."""


def guard_popen() -> None:
    """In the child: make `subprocess.Popen` objects of pytest's process say that they cannot be waited for here.

    Only the process that started a program can wait for it. `Popen` takes the kernel's refusal in a fork for
    "ended with status 0", which would be a lie.
    """
    subprocess: Any = sys.modules.get("subprocess")
    if subprocess is None:
        return
    popen = subprocess.Popen
    execute, poll, wait = popen._execute_child, popen._internal_poll, popen._wait
    ours: set[int] = set()

    def execute_child(self: Any, *args: Any, **kwargs: Any) -> Any:
        ours.add(id(self))
        return execute(self, *args, **kwargs)

    def internal_poll(self: Any, _deadstate: Any = None, *args: Any, **kwargs: Any) -> Any:
        if id(self) in ours or self.returncode is not None:
            return poll(self, _deadstate, *args, **kwargs)
        if _deadstate is not None:  # from __del__ and at the next Popen: not a question of the test's
            return None
        raise _refusal(self)

    def _wait(self: Any, timeout: Any) -> Any:
        if id(self) in ours or self.returncode is not None:
            return wait(self, timeout)
        raise _refusal(self)

    popen._execute_child, popen._internal_poll, popen._wait = execute_child, internal_poll, _wait


def _refusal(process: Any) -> NotInThisBoxError:
    return NotInThisBoxError(
        f"process {process.pid} ({process.args!r}) was started outside this test's box, by a fixture of a wider scope: "
        "the test can reach it, but only pytest's own process can poll or wait for it. "
        "Ask the server itself, or name the fixture in ini sandbox_box_fixtures"
    )
