"""One container in the warden: a box, its main program, what else was started in it, and their output.

    created -> running <-> paused -> exited

The box ends with its main program; its root stays until the container is removed, so that changes can be listed.
"""

from __future__ import annotations

import os
import time

from pytest_nsbox.kernel import process
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.hostmounts import inspected
from pytest_nsbox.real import read_text
from pytest_nsbox.warden.output import STDERR, STDOUT, Output, read_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.warden.box import Box
    from pytest_nsbox.warden.execute import Program, Streams
    from pytest_nsbox.warden.freezing import Freezer

# What one call of `drain` reads at most: a program that prints without end must not keep the warden.
_MOST_DRAINED = 1 << 21
_CLD_EXITED = 1


class Process:
    """A program of a container that was started: its main one, or one of exec."""

    def __init__(self, pid: int, pidfd: int, streams: Streams) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.output = Output()
        # Pipes that are not at their end, each with the stream's number.
        self.pipes = {streams.stdout: STDOUT, streams.stderr: STDERR} if streams.stdout >= 0 else {}
        self.failure = streams.failure
        self.returncode: int | None = None
        self.begun = time.monotonic()
        self.ended = 0.0
        # Who is told when it has ended.
        self.waiting: list[Callable[[], None]] = []
        # Who is told, once, when it has printed more or has ended.
        self.followers: list[Callable[[], None]] = []

    def wake(self) -> None:
        """Tell the followers."""
        followers, self.followers = self.followers, []
        for follower in followers:
            follower()

    def pump(self, pipe: int) -> bool:
        """Read some of what `pipe` holds; False if it is at its end."""
        data = read_pipe(pipe)
        if data:
            self.output.add(self.pipes[pipe], data)
            self.wake()
        return data != b""

    def drain(self) -> None:
        """Read what the pipes hold now."""
        for pipe, stream in self.pipes.items():
            size = 0
            while size < _MOST_DRAINED and (data := read_pipe(pipe)):
                self.output.add(stream, data)
                size += len(data)

    def signal(self, number: int) -> None:
        """Send a signal to the program; nothing happens if it has ended."""
        if self.returncode is None:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                return

    def reap(self) -> bool:
        """Collect its exit status if it has ended; say so."""
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        if result is None:
            return False
        self.returncode = result.si_status if result.si_code == _CLD_EXITED else -result.si_status
        self.ended = time.monotonic()
        return True


class Container:
    """A container: `status`, its box and processes. Containers.py moves it from one status to the next."""

    def __init__(self, name: str, number: int, spec: Spec, program: Program, owner: object) -> None:
        self.name = name
        self.id = f"box-{number}"
        self.spec = spec
        self.program = program
        # The connection that started it: when it closes, the container goes.
        self.owner = owner
        self.status = "created"
        self.box: Box | None = None
        self.main: Process | None = None
        self.execs: list[Process] = []
        self.freezer: Freezer | None = None
        self.counters: dict[str, str] = {}
        self.timed_out = False
        self.removed = False
        self.removing = False
        # The name of the box whose network it shares.
        self.joined: str | None = None
        # Where it is reached: "ip" in its network, "ports" that it publishes; and what is told of its networks.
        self.reached: dict[str, Any] = {}
        self.networks: dict[str, Any] = {}
        # What the client that started it wants to be told again, it or another one.
        self.note: object = None

    def processes(self) -> list[Process]:
        """Return every process that was started and has not been collected."""
        return [p for p in (self.main, *self.execs) if p is not None and p.returncode is None]

    def kill(self) -> None:
        """Kill everything in the box."""
        self.thaw()
        if self.box is not None and not self.box.reaped:
            process.kill(self.box.pidfd)

    def thaw(self) -> None:
        """Let a paused container go on; one that is not paused is no error."""
        if self.freezer is not None:
            self.freezer.thaw()
            if self.status == "paused":
                self.status = "running"

    def read_counters(self) -> dict[str, str]:
        """Return the counter files of its cgroups, as they are or were at the end."""
        if self.status != "exited" and self.box is not None:
            return self.box.node.read()
        return self.counters

    def wall(self) -> float:
        """Return for how many seconds the main program has run."""
        if self.main is None:
            return 0.0
        return (self.main.ended or time.monotonic()) - self.main.begun

    def since(self) -> float:
        """Return for how many seconds it has been in this world, as far as its main program is."""
        return time.monotonic() - self.main.begun if self.main is not None else 0.0

    def inspect(self) -> dict[str, Any]:
        """Return what `docker inspect` tells, as far as the kernel knows it."""
        code = self.main.returncode if self.main is not None else None
        pid = self.main.pid if self.main is not None and self.status in ("running", "paused") else 0
        return {
            "Id": self.id,
            "Name": self.name,
            "State": self.status,
            "ExitCode": None if code is None else code if code >= 0 else 128 - code,
            "Pid": pid,
            "Args": list(self.program.argv),
            "Env": [f"{name}={value}" for name, value in self.program.env.items()],
            **_seen_in_proc(pid),
            "Networks": self.networks or {f"container:{self.joined}" if self.joined else self.spec.net: {}},
            "Limits": self.spec.shown(),
            "Image": self.spec.rootfs,
        }


def _seen_in_proc(pid: int) -> dict[str, Any]:
    directory = f"/proc/{pid}"
    try:
        namespaces = {kind: os.readlink(f"{directory}/ns/{kind}") for kind in os.listdir(f"{directory}/ns")}
        seen = inspected(read_text(f"{directory}/mountinfo"), read_text(f"{directory}/cgroup"))
    except OSError:
        # It has ended.
        namespaces, seen = {}, inspected("", "")
    return {"Namespaces": namespaces, **seen}
