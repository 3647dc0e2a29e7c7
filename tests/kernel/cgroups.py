"""What the cgroup tests share: programs that run inside a node, and doors that fail."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pytest_nsbox.kernel import cgroup, cgroup_tree
from pytest_nsbox.kernel.cgroup_node import Node, Session
from pytest_nsbox.policy.limits import Write, cgroup_writes
from pytest_nsbox.policy.spec import Spec
from tests.leftovers import PARENT

HOLD_MEMORY = "import sys; block = bytearray(int(sys.argv[1])); print('held')"
SPIN = """
import sys, time
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    pass
"""


def parent() -> str | None:
    """The cgroup parent of this test process, as the options of the plugin name it."""
    return os.environ.get(PARENT)


@contextmanager
def opened(name: str = "unit", **options: Any) -> Iterator[Session]:
    session = cgroup.open_session(parent(), name, **options)
    try:
        yield session
    finally:
        session.close()


@contextmanager
def node_of(session: Session, spec: Spec, name: str = "box", owner: int | None = None) -> Iterator[Node]:
    node = session.make(name, cgroup_writes(spec, session.version), owner)
    try:
        yield node
    finally:
        node.remove()


@contextmanager
def started(node: Node, *command: str) -> Iterator[subprocess.Popen[str]]:
    """`command`, in the node's groups before its first instruction; killed at the end if it still runs."""

    def attach() -> None:
        for fd in node.attach:
            os.write(fd, b"0")

    with subprocess.Popen(
        command,
        preexec_fn=attach,  # noqa: PLW1509 - one thread runs here
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def python(code: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs `code` in a small, fresh interpreter."""
    return (sys.executable, "-I", "-S", "-u", "-c", code, *arguments)


def run(node: Node, code: str, *arguments: str, timeout: float = 60) -> tuple[int, str]:
    """Run Python code inside the node; return its returncode, as in subprocess, and its output."""
    with started(node, *python(code, *arguments)) as process:
        output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


class FailingFiles(cgroup_tree.Files):
    """Real calls, of which the one with number `fails` raises `number`. `calls` tells them all."""

    WATCHED = ("open", "write", "mkdir", "rmdir", "chown", "setxattr", "getxattr", "read")

    def __init__(self, fails: int | None = None, number: int = errno.EIO) -> None:
        self.calls: list[str] = []
        self.fails = fails
        self.number = number
        for name in self.WATCHED:
            setattr(self, name, self._watch(name, getattr(cgroup_tree.Files, name)))

    def _watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            index = len(self.calls)
            self.calls.append(f"{name} {arguments[0]}")
            if index == self.fails:
                raise OSError(self.number, os.strerror(self.number))
            return function(*arguments)

        return call


def groups_below(parent_name: str) -> list[str]:
    """Every group in any hierarchy whose path has `parent_name` in it."""
    found = []
    for mount in cgroup.find_mounts():
        for directory, names, _ in os.walk(mount.point):
            found += [f"{directory}/{name}" for name in names if parent_name in f"{directory}/{name}"]
    return found


def limit(controller: str, file: str, value: str, fallback: Sequence[Write] | None = None) -> Write:
    return Write(controller, file, value, None if fallback is None else tuple(fallback))
