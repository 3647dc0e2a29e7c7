"""A warden for tests, and functions that run in its boxes."""

from __future__ import annotations

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden.client import Box, Released, SessionConfig, Warden

T = TypeVar("T")


class DiedError(Exception):
    """The function's process ended without a result; `status` is that of waitpid."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    @property
    def signal(self) -> int:
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0


def config(**values: Any) -> SessionConfig:
    values.setdefault("tmpdir", tempfile.gettempdir())
    values.setdefault("cgroup_parent", os.environ.get("PYTEST_NSBOX_CGROUP_PARENT"))
    return SessionConfig(**values)


@contextmanager
def started(**values: Any) -> Iterator[Warden]:
    """A warden that is closed afterwards, with nothing left that it knows of."""
    warden = Warden.start(config(**values))
    try:
        yield warden
    finally:
        problems = warden.close()
        assert problems == (), problems


def fork_into(box: Box, function: Callable[[], T]) -> tuple[int, int]:
    """Fork a child that runs `function` in `box`; return its pid and a descriptor of its pickled result."""
    reader, writer = os.pipe()
    box.before_fork()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            try:
                box.after_fork_in_child()
                box.enter()
                box.apply_limits()
                result: tuple[bool, object] = (True, function())
            except BaseException as error:  # noqa: BLE001  # whatever it is, the parent wants to see it
                result = (False, (error, traceback.format_exc()))
            try:
                data = pickle.dumps(result)
            except Exception:  # noqa: BLE001
                data = pickle.dumps((False, (AssertionError(repr(result)), "")))
            with open(writer, "wb") as file:
                file.write(data)
        finally:
            os._exit(0)
    box.after_fork_in_parent()
    os.close(writer)
    return box.child_of(pid), reader


def collect(pid: int, reader: int) -> Any:
    """Wait for the child and return what its function returned, or raise what it raised, or DiedError."""
    with open(reader, "rb") as file:
        data = file.read()
    _, status = os.waitpid(pid, 0)
    if not data:
        raise DiedError(status)
    fine, result = pickle.loads(data)
    if fine:
        return result
    error, trace = result
    error.args = (*error.args, trace) if isinstance(error, AssertionError) else error.args
    raise error


def run_in(box: Box, function: Callable[[], T]) -> T:
    """Run `function` in `box` and return its result."""
    result: T = collect(*fork_into(box, function))
    return result


def run(warden: Warden, function: Callable[[], T], **spec: Any) -> T:
    """Run `function` in a new box of `spec`."""
    return run_for_usage(warden, function, **spec)[0]


def run_for_usage(warden: Warden, function: Callable[[], T], **spec: Any) -> tuple[T, Released]:
    """The same, with what the box left."""
    box = warden.acquire(Spec(**spec))
    try:
        result = run_in(box, function)
    finally:
        released = box.release()
    return result, released


def in_a_process(function: Callable[[], Any]) -> Any:
    """Run `function` in a fork: a session takes a mount namespace and a working directory for itself."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                result: tuple[bool, object] = (True, function())
            except BaseException:  # noqa: BLE001  # shown by the parent
                result = (False, traceback.format_exc())
            with open(writer, "wb") as file:
                pickle.dump(result, file)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    fine, result = pickle.loads(data)
    assert fine, result
    return result


def status_field(name: str, pid: int | str = "self") -> str:
    """A field of /proc/PID/status."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return line.partition(":")[2].strip()
    raise KeyError(name)
