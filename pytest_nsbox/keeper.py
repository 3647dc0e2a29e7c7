"""The process behind the command line `nsbox`: it has the warden whose containers outlive the commands that start them.

A command connects to the user's socket, and starts the keeper if nobody listens there; the keeper gives it a connection
to the warden, on which it asks for containers as a test does. Once there is no container, no network and no command any
more, the keeper ends, and the warden with it. If it is killed, the warden removes everything.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
from typing import Any

from pytest_nsbox.places import CGROUP_PARENT, volumes_directory
from pytest_nsbox.policy.errors import BoxFailed, SandboxError

_TRIES = 5
# Seconds that it stays when nobody needs it: the next command often comes soon.
LINGER = 3.0
# Nobody's child: the command that starts it may be a program that goes on to do other things.
_APART = "import os, sys; os.fork() and os._exit(0); "
_PROGRAM = _APART + "from pytest_nsbox.keeper import main; main(int(sys.argv[1]), sys.argv[2])"


def _runtime_directory() -> str:
    """The directory of the socket, which nobody else may enter; made if it is missing."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    uid = os.geteuid()
    path = f"{base}/pytest-nsbox" if os.path.isabs(base) else f"{tempfile.gettempdir()}/pytest-nsbox-{uid}"
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        at = os.lstat(path)
    except OSError as error:
        raise BoxFailed(f"{path}: {os.strerror(error.errno or 0)} (nsbox keeps its socket there)") from None
    if not stat.S_ISDIR(at.st_mode) or at.st_uid != uid or at.st_mode & 0o077:
        raise BoxFailed(f"{path}: must be a directory of yours alone (mode 0700): nsbox keeps its socket there")
    return path


class Line:
    """A command's line to the keeper, and the way to the warden."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None

    def connect(self) -> socket.socket:
        """A connection to the warden; a keeper is started if there is none. Raises BoxFailed."""
        found = self._connect(start=True)
        assert found is not None
        return found

    def find(self) -> socket.socket | None:
        """The same, or None if there is no keeper, and so no container."""
        return self._connect(start=False)

    def _connect(self, *, start: bool) -> socket.socket | None:
        directory = _runtime_directory()
        for _ in range(_TRIES):
            sock = _dial(f"{directory}/socket")
            if sock is None:
                if not start:
                    return None
                sock = _start(directory)
            try:
                data, fds, _, _ = socket.recv_fds(sock, 1 << 16, 1)
            except ConnectionError:
                data = b""
            if not data:
                # It was about to end.
                sock.close()
                continue
            answer = json.loads(data)
            if "error" in answer:
                sock.close()
                raise BoxFailed(answer["error"])
            # Held: the keeper stays as long as a command does.
            self._sock = sock
            return socket.socket(fileno=fds[0])
        raise BoxFailed(f"the process that keeps containers ends as soon as it is started (see {directory}/log)")

    def end(self) -> None:
        """Have the keeper end now, if it holds nothing, and wait until it has."""
        if self._sock is not None:
            self._sock.sendall(b"e")
            self._sock.recv(1)

    def close(self) -> None:
        """The command is done."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _dial(path: str) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    return sock


def _start(directory: str) -> socket.socket:
    """Start a keeper, unless another command does; return a connection to it."""
    path = f"{directory}/socket"
    lock = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sock = _dial(path)
        if sock is not None:
            return sock
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(path)
            listening.listen(64)
            with open(f"{directory}/log", "wb") as log:
                command = [sys.executable, "-c", _PROGRAM, str(listening.fileno()), directory]
                streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
                subprocess.run(
                    command,
                    pass_fds=[listening.fileno()],
                    cwd="/",
                    start_new_session=True,
                    env=_environment(),
                    check=True,
                    **streams,
                )
        finally:
            listening.close()
        found = _dial(path)
        if found is None:
            raise BoxFailed(f"{path}: nobody listens there")
        return found
    finally:
        os.close(lock)


def _environment() -> dict[str, str]:
    """The keeper's environment: its module must be found where ours was."""
    package_parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [package_parent, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


# --- the keeper's own process


class Keeper:
    """Serves commands until nobody needs it."""

    def __init__(self, listening: socket.socket, directory: str) -> None:
        from pytest_nsbox.warden.client import SessionConfig, Warden
        from pytest_nsbox.warden.engine import Engine

        self._listening = listening
        self._directory = directory
        config = SessionConfig(
            tmpdir=tempfile.gettempdir(),
            cgroup_parent=os.environ.get(CGROUP_PARENT) or None,
            volumes=volumes_directory(),
        )
        self._warden = Warden.start(config)
        self._engine = Engine(self._warden.connect())
        self._commands: dict[int, socket.socket] = {}
        # Those that wait for our end.
        self._waiting: list[socket.socket] = []

    def serve(self) -> None:
        """Serve; return when the keeper is not needed any more, with the socket closed."""
        poll = select.poll()
        for fd in (self._listening.fileno(), self._engine.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            needed = bool(self._commands) or self._holds_something()
            while needed and self._waiting:
                self._waiting.pop().close()
            ready = poll.poll(None if needed else 0 if self._waiting else LINGER * 1000)
            if not ready and not needed and self._leave():
                return
            for fd, _ in ready:
                if fd == self._listening.fileno():
                    sock = self._accept()
                    self._commands[sock.fileno()] = sock
                    poll.register(sock.fileno(), select.POLLIN)
                elif fd in self._commands:
                    # A command says nothing here but "end"; else it has ended.
                    poll.unregister(fd)
                    command = self._commands.pop(fd)
                    if command.recv(1):
                        self._waiting.append(command)
                else:
                    # The warden is gone.
                    self._unlink()
                    return

    def _holds_something(self) -> bool:
        try:
            return bool(self._engine.ask("list", all=True)[0] or self._engine.ask("networks")[0])
        except BoxFailed:
            return False

    def _accept(self) -> socket.socket:
        sock, _ = self._listening.accept()
        try:
            with contextlib.closing(self._warden.connect()) as connection:
                socket.send_fds(sock, [b"{}"], [connection.fileno()])
        except BoxFailed as error:
            sock.send(json.dumps({"error": str(error)}).encode())
        return sock

    def _leave(self) -> bool:
        """Stop listening, unless somebody has just come."""
        lock = os.open(f"{self._directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if select.select([self._listening], [], [], 0)[0]:
                return False
            self._unlink()
        finally:
            os.close(lock)
        return True

    def _unlink(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._directory}/socket")
        self._listening.close()

    def close(self) -> None:
        """End the warden, and with it everything."""
        self._engine.close()
        problems = self._warden.close()
        for problem in problems:
            sys.stderr.write(f"{problem}\n")


def main(fd: int, directory: str) -> None:
    """The keeper's process: `fd` listens."""
    listening = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    try:
        keeper = Keeper(listening, directory)
    except (SandboxError, OSError) as error:
        # Whoever waits is told, and the next command tries again.
        with contextlib.suppress(OSError):
            listening.accept()[0].sendall(json.dumps({"error": str(error)}).encode())
        return
    try:
        keeper.serve()
    finally:
        keeper.close()
