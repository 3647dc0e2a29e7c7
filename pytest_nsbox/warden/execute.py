"""Start a program in a box that exists: a fork of the warden goes into the box and becomes the program.

The fork gets nothing of the warden's but its standard streams, and pytest's process takes no part at all.
"""

from __future__ import annotations

import errno
import marshal
import os
import resource

from pytest_nsbox.kernel import namespaces, process
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.confinement import confine
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.image import DEFAULT_PATH
from pytest_nsbox.policy.record import keyword_record
from pytest_nsbox.policy.users import find_user
from pytest_nsbox.real import text_of
from pytest_nsbox.warden import ulimits
from pytest_nsbox.warden.attaching import attach
from pytest_nsbox.warden.confine import Confiner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from pytest_nsbox.policy.confinement import Confinement
    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.warden.box import Box, Undo
    from pytest_nsbox.warden.doors import Doors

# What Python itself ignores, and what the warden does, is inherited by programs.
_GO = b"g"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ)


@keyword_record
class Program:
    """What is to be run: arguments, the whole environment, working directory, user (None: root), and the spec of the
    box for its ulimits.

    terminal  it gets a terminal of the box; its standard input is a socket then, on which the other end is sent
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    workdir: str | None
    user: str | None
    spec: Spec
    terminal: bool = False


class Streams:
    """Both ends of a new process' standard streams, and of the pipe on which it tells why it could not start.

    stdin    to be read from, -1 for nothing
    outputs  descriptors to be written to; () for pipes, whose ends for us are `stdout` and `stderr`
    """

    def __init__(self, stdin: int = -1, outputs: tuple[int, ...] = ()) -> None:
        self.stdin = stdin
        self.stdout = self.stderr = -1
        self.failure, self._theirs_failure = os.pipe()
        if outputs:
            self._theirs_out, self._theirs_err = outputs
            return
        self.stdout, self._theirs_out = os.pipe()
        self.stderr, self._theirs_err = os.pipe()
        for fd in (self.stdout, self.stderr):
            os.set_blocking(fd, False)
        for fd in (self._theirs_out, self._theirs_err):
            # Programs open /dev/stdout; the pipe belongs to the host's root.
            os.fchmod(fd, 0o666)

    def theirs(self) -> tuple[int, int, int, int]:
        """Return stdin, stdout, stderr and the failure pipe as the new process has them."""
        return self.stdin, self._theirs_out, self._theirs_err, self._theirs_failure

    def close_theirs(self) -> None:
        """In the warden, when the process exists."""
        for fd in self.theirs():
            if fd >= 0:
                os.close(fd)
        self.stdin = -1

    def close_ours(self) -> None:
        """When nothing was started."""
        for fd in (self.stdout, self.stderr, self.failure):
            if fd >= 0:
                os.close(fd)


class Early:
    """A process that was forked while its box is being made, and waits to be let in."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.pid = self.pidfd = -1
        try:
            self.waits, self._lets_in = os.pipe()
        except OSError:
            streams.close_ours()
            raise

    def has_been_let_in(self) -> bool:
        """In the process: wait; False if it is to end."""
        os.close(self._lets_in)
        return os.read(self.waits, 1) == _GO

    def let_in(self) -> None:
        """The box is ready."""
        os.write(self._lets_in, _GO)
        self._close()

    def drop(self) -> None:
        """There is no box for it. Its init cannot end before it is collected."""
        if self.pidfd >= 0:
            process.kill(self.pidfd)
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
            os.close(self.pidfd)
        self.streams.close_ours()
        self._close()

    def _close(self) -> None:
        os.close(self.waits)
        os.close(self._lets_in)


class Spawner:
    """Starts programs for one warden."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._confiners: dict[Confinement, Confiner] = {}
        self._home = doors.open_namespace("self", "pid")
        # A container takes some ten descriptors; programs get the limit back that the warden had.
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._files[1], self._files[1]))

    def spawn(
        self, box: Box, program: Program, streams: Streams, screens: tuple[int, ...], early: Early | None = None
    ) -> tuple[int, int]:
        """Return pid (on the host) and pidfd of a new process in `box` that becomes `program`; both ends of `streams`
        stay the caller's. Raises KernelError.

        screens  the session's, see kernel.cgroup_node
        early    the box is not ready yet
        """
        if box.view is not None:
            # Imported for the fork: in the box, Python's own files are the box's.
            from pytest_nsbox.warden import viewed  # noqa: F401
        if program.terminal:
            from pytest_nsbox.warden import pseudoterminal  # noqa: F401
        confiner = self._confiner(program.spec)
        if box.tree.plan.dumpable:
            return _spawn_from_within(
                box, streams, lambda: self._run(box, program, streams.theirs(), screens, confiner)
            )
        self._doors.setns(box.pidfd, namespaces.NEWPID)
        try:
            pid, pidfd = self._doors.clone3(0)
            if pid == 0:
                self._run(box, program, streams.theirs(), screens, confiner, early)
        finally:
            self._doors.setns(self._home, namespaces.NEWPID)
        return pid, pidfd

    def fork_early(self, box: Box, program: Program, stdin: int, screens: tuple[int, ...], undo: Undo) -> Early | None:
        """Fork the process of `program` while the init of its box gets ready; None if it can only be forked after that.

        It is dropped by `undo`. Takes `stdin` over, unless the result is None. Raises OSError.
        """
        if box.view is not None or program.terminal or box.tree.plan.dumpable:
            return None
        streams = Streams(stdin)
        early = Early(streams)
        try:
            early.pid, early.pidfd = self.spawn(box, program, streams, screens, early)
        except KernelError:
            # The init has failed already, and will tell why; nothing can be forked into its namespace any more.
            streams.stdin = -1
            early.drop()
            return None
        except BaseException:
            early.drop()
            raise
        finally:
            streams.close_theirs()
        undo.add(early.drop)
        return early

    def _confiner(self, spec: Spec) -> Confiner | None:
        confinement = confine(spec, container=True)
        if confinement is None:
            return None
        if confinement not in self._confiners:
            self._confiners[confinement] = Confiner(confinement)
        return self._confiners[confinement]

    def _run(
        self,
        box: Box,
        program: Program,
        fds: tuple[int, int, int, int],
        screens: tuple[int, ...],
        confiner: Confiner | None,
        early: Early | None = None,
    ) -> NoReturn:
        failure = fds[3]
        try:
            try:
                _attach(box, program.spec, screens)
                if early is not None and not early.has_been_let_in():
                    os._exit(127)
                _enter(box)
                if program.terminal:
                    from pytest_nsbox.warden import pseudoterminal

                    slave = pseudoterminal.open_and_send(fds[0])
                    fds = (slave, slave, slave, failure)
                _take_streams(fds)
                failure = 3
                _execute(program, self._files, box.tree.plan.ids, confiner)
            except KernelError as error:
                report = (error.call, error.target[:1000], error.errno)
            except BoxFailed as error:
                report = ("", str(error), 0)
            except BaseException as error:  # noqa: BLE001  # it must not run on in the warden's code
                report = ("start", f"{program.argv[0]} ({type(error).__name__}: {error})"[:1000], errno.EIO)
            os.write(failure, marshal.dumps(report))
        finally:
            os._exit(127)

    def close(self) -> None:
        """Let go of the descriptors."""
        os.close(self._home)


def _spawn_from_within(box: Box, streams: Streams, run: Callable[[], NoReturn]) -> tuple[int, int]:
    """`Spawner.spawn` for a warden in a user namespace, which has no rights in the pid namespace that it came from:
    nothing could bring it back there.
    """
    from pytest_nsbox.warden.second_fork import SecondFork

    second = SecondFork(box.pidfd, namespaces.NEWPID)
    first = os.fork()
    if first == 0:
        try:
            failure = second.in_child()
            if failure is None:
                run()
            os.write(streams.theirs()[3], marshal.dumps((failure.call, failure.target[:1000], failure.errno)))
        finally:
            os._exit(127)
    pid = second.in_parent(first)
    return pid, process.open_pidfd(pid)


def _attach(box: Box, spec: Spec, screens: tuple[int, ...]) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    attach(box.name, screens, box.node.attach, spec, rootless=box.tree.plan.ids is not None)
    ulimits.raise_hard(spec)
    if box.namespaces & namespaces.NEWUSER:
        process.leave_session_keyring()


def _enter(box: Box) -> None:
    namespaces.setns(box.pidfd, box.namespaces & ~namespaces.NEWPID)
    if box.clock >= 0:
        namespaces.setns(box.clock, namespaces.NEWTIME)
    namespaces.unshare(namespaces.NEWCGROUP)
    if box.namespaces & namespaces.NEWUSER and box.tree.plan.ids is None:
        process.become(0, 0)
    if box.view is not None:
        from pytest_nsbox.warden import viewed

        viewed.settle(box.view.cpus, box.view.theirs)


def _take_streams(fds: tuple[int, int, int, int]) -> None:
    """Make the standard streams 0, 1 and 2, the pipe for failures 3, and close everything else."""
    stdin, stdout, stderr, failure = fds
    if stdin < 0:
        stdin = os.open("/dev/null", os.O_RDONLY)
    # What is to be copied may lie where something else is copied to.
    high = [fd if fd >= 4 else _above(fd) for fd in (stdin, stdout, stderr, failure)]
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=number < 3)
    process.close_all_but((0, 1, 2, 3))


def _above(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 4)


def _execute(
    program: Program, files: tuple[int, int], ids: tuple[int, int] | None, confiner: Confiner | None
) -> NoReturn:
    resource.setrlimit(resource.RLIMIT_NOFILE, files)
    ulimits.set_all(program.spec)
    user = find_user(program.user or "0", text_of("/etc/passwd"), text_of("/etc/group"))
    if confiner is not None:
        confiner.before_user()
    if ids is not None:
        if program.user is not None and (user.uid, user.gid) != ids:
            raise BoxFailed(f"user={program.user!r}: this box has no user but {ids[0]}:{ids[1]}, who it was made with")
        if ids[0] != 0:
            process.drop_capabilities()
    elif program.user is not None:
        if program.terminal:
            os.fchown(0, user.uid, -1)
        process.become(user.uid, user.gid, user.groups)
    workdir = program.workdir or "/"
    try:
        os.chdir(workdir)
    except OSError as error:
        raise KernelError("chdir", workdir, error.errno or 0) from None
    os.umask(0o022)
    env = {"HOME": user.home if user.home != "/" or user.uid else "/root", **program.env}
    if confiner is not None:
        confiner.after_user()
    _become(program.argv, env)


def _become(argv: tuple[str, ...], env: dict[str, str]) -> NoReturn:
    """Become the program, which is looked for as a shell does."""
    name = argv[0]
    places = [name] if "/" in name else [f"{at or '.'}/{name}" for at in env.get("PATH", DEFAULT_PATH).split(":")]
    problem = errno.ENOENT
    for path in places:
        try:
            os.execve(path, argv, env)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                problem = error.errno or errno.EIO
                if problem != errno.EACCES:
                    break
    raise KernelError("exec", name, problem)


def failure(report: bytes) -> BoxFailed | KernelError | None:
    """Return the error that the new process told, or None if it became its program."""
    if not report:
        return None
    call, target, number = marshal.loads(report)
    return KernelError(call, target, number) if call else BoxFailed(target)
