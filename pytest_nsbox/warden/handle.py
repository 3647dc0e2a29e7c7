"""A box as the process that forks into it sees it, and its forked child."""

from __future__ import annotations

from pytest_nsbox.kernel import namespaces, process
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.record import record
from pytest_nsbox.policy.users import find_user
from pytest_nsbox.real import os, text_of
from pytest_nsbox.warden import messages as m
from pytest_nsbox.warden import ulimits
from pytest_nsbox.warden.attaching import attach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.warden.client import Warden
    from pytest_nsbox.warden.confine import Confiner
    from pytest_nsbox.warden.second_fork import SecondFork


@record
class Released:
    """What a box left.

    counters       {counter file: its text}, for policy.usage
    files_changed  how many paths of the root it added, changed or deleted
    artifacts      files copied out of it; `problems`: what could not be copied
    """

    counters: dict[str, str]
    files_changed: int
    artifacts: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class Box:
    """A box that this process may fork a child into.

    name      unique in the session
    pidfd     of its init; `init_pid` on the host
    attach    descriptors to write b"0" to, from inside the child
    parts     what the warden sent: with it another process of ours can be the one that forks
    """

    def __init__(self, warden: Warden, made: m.Made, fds: tuple[int, ...], spec: Spec) -> None:
        self.parts = (made, fds)
        self.name = made.box
        self.spec = spec
        self.init_pid = made.pid
        self.pidfd = fds[0]
        self._cpus = tuple(made.cpus)
        self._line = fds[-1] if self._cpus else -1
        if self._cpus:
            fds = fds[:-1]
            # Before the fork: in the child the imports would be the box's.
            from pytest_nsbox.warden import viewed  # noqa: F401
        self.timens = fds[-1] if made.clock else None
        self.attach = fds[1:-1] if made.clock else fds[1:]
        self._namespaces = made.namespaces
        self._ids = tuple(made.ids) or None
        self._second_fork: SecondFork | None = None
        self._failure: KernelError | None = None
        self._warden = warden
        self._cwd: str | None = None
        self._confiner: Confiner | None = None
        self._releasing: int | None = None
        self.lapping = False  # it was asked what it used so far, and nobody has taken the answer

    def is_alive(self) -> bool:
        """Say if its init is, as far as we know: not once the box was given back."""
        return self.pidfd >= 0 and not process.has_ended(self.pidfd)

    def before_fork(self) -> None:
        """Make our next child be born in the box's pid namespace. No thread may be started until
        `after_fork_in_parent`.
        """
        if self._ids is None:
            namespaces.setns(self.pidfd, namespaces.NEWPID)
            return
        from pytest_nsbox.warden.second_fork import SecondFork

        self._second_fork = SecondFork(self.pidfd)

    def after_fork_in_parent(self) -> None:
        """Have our children in our own pid namespace again."""
        if self._ids is None:
            namespaces.setns(self._warden.own_pid_namespace(), namespaces.NEWPID)

    def after_fork_in_child(self) -> bool:
        """Return in the process that is to call `enter`; say if it is another one than was forked."""
        if self._second_fork is None:
            return False
        self._failure = self._second_fork.in_child()
        return self._failure is None

    def child_of(self, forked: int) -> int:
        """After `after_fork_in_parent`: return the pid of who goes into the box, given the forked one's."""
        return forked if self._second_fork is None else self._second_fork.in_parent(forked)

    def enter(self) -> None:
        """In the forked child, while it has one thread: go into the box. Raises KernelError; then the child must end.

        Closes every descriptor of the warden's. Afterwards the process is root of the box (rootless: the plan's user),
        and its working directory the box's "/".
        """
        if self._failure is not None:
            raise self._failure
        self._cwd = _working_directory()
        if self.spec.caps is not None or self.spec.seccomp is not None:
            # Imported and made now: in the box, Python's own files are the box's.
            from pytest_nsbox.policy.confinement import confine
            from pytest_nsbox.warden.confine import Confiner

            confinement = confine(self.spec, container=False)
            self._confiner = None if confinement is None else Confiner(confinement)
        attach(self.name, self._warden.screens, self.attach, self.spec, rootless=self._ids is not None)
        ulimits.raise_hard(self.spec)
        if self._namespaces & namespaces.NEWUSER:
            # As the host's root still, whose quota of keys is large.
            process.leave_session_keyring()
        entered = namespaces.NEWPID if self._ids is None else namespaces.NEWPID | namespaces.NEWUSER
        namespaces.setns(self.pidfd, self._namespaces & ~entered)
        if self.timens is not None:
            namespaces.setns(self.timens, namespaces.NEWTIME)
        namespaces.unshare(namespaces.NEWCGROUP)
        if self._namespaces & ~entered & namespaces.NEWUSER:
            process.become(0, 0)
            # Taken away by the change of ids; without it the test could not read its own /proc/self.
            process.set_dumpable(dumpable=True)
        unfiltered = self.spec.seccomp == "none" or self.spec.privileged
        (self._warden.least_filter if unfiltered else self._warden.filter).set()
        if self._cpus:
            from pytest_nsbox.warden import viewed

            line, self._line = self._line, -1
            viewed.settle(self._cpus, line)
        if self._ids is not None and self._ids[0] != 0:
            process.drop_capabilities()
        self._close_fds()
        self._warden.close_in_child()

    def apply_limits(self) -> None:
        """In the child, in the box: ulimits, working directory, user. Raises KernelError or BoxFailed."""
        ulimits.set_all(self.spec)
        self._change_directory()
        if self._confiner is not None:
            self._confiner.before_user()
        if self.spec.user is not None and self._ids is None:
            user = find_user(self.spec.user, text_of("/etc/passwd"), text_of("/etc/group"))
            process.become(user.uid, user.gid, user.groups)
            process.set_dumpable(dumpable=True)
        if self._confiner is not None:
            self._confiner.after_user()

    def _change_directory(self) -> None:
        path = self.spec.workdir or self._cwd
        if path is None:
            return
        try:
            os.chdir(path)
        except OSError as error:
            if self.spec.workdir is not None:
                raise BoxFailed(f"workdir={path!r}: {error.strerror} (accepted: a directory of the box's)") from None

    def kill(self) -> None:
        """Kill every process of the box, at once. Its child of ours must then be reaped, or the box cannot end.

        The box's mounts live on if there are artifacts to copy out of it.
        """
        if self.spec.artifacts:
            self._warden.ask(m.Kill(self._warden.next_number(), self.name), m.Done)
        else:
            process.kill(self.pidfd)

    def counters(self) -> dict[str, str]:
        """Return the counter files of the box's cgroups so far, for policy.usage."""
        return self._warden.ask(m.Read(self._warden.next_number(), self.name), m.Counters).texts

    def changes(self) -> list[tuple[str, str]]:
        """Return (kind, path) of what differs from the root that the box began with: A added, C changed, D deleted."""
        answer = self._warden.ask(m.Compare(self._warden.next_number(), self.name), m.Changes)
        return [(kind, path) for kind, path in answer.changes]

    def begin_release(self, artifacts_to: str = "", *, ends: bool = True, keep: str = "") -> None:
        """Ask the warden for `release` without waiting for its answer; its work goes on meanwhile.

        ends  False: the box lives on, with new peaks; `release` returns what it used, and may be asked for again
        keep  the directory that copies of all changed files go to, made if it is missing
        """
        if self._releasing is None:
            number = self._warden.next_number()
            workdir = self.spec.workdir or _working_directory() or "/"
            globs = self.spec.artifacts if artifacts_to else ()
            request = m.Release(number, self.name, globs, artifacts_to, workdir, ends, keep)
            self._releasing = number
            try:
                self._warden.tell(request)
            finally:
                if ends:
                    self._close_fds()
                else:
                    self.lapping = True

    def drop(self) -> None:
        """Give the box back without a word about what it used."""
        self._warden.drop(self.name)
        self._close_fds()

    def close_in_child(self) -> None:
        """In the process of another test: close what opens this box."""
        self._close_fds()

    def release(self, artifacts_to: str = "") -> Released:
        """Give the box back: kill what is left in it and return what it used.

        The box's last process ends only when its child of ours is reaped; that may be later.

        artifacts_to  the directory that copies of what the spec's `artifacts` match are put in, made if it is missing;
                      relative globs start at the spec's working directory, else at ours
        """
        self.begin_release(artifacts_to)
        assert self._releasing is not None
        answer = self._warden.answer(self._releasing, m.Released)
        if self.lapping:
            self._releasing, self.lapping = None, False
        return Released(answer.texts, answer.files_changed, answer.artifacts, answer.problems)

    def _close_fds(self) -> None:
        fds = (self.pidfd, self._line, *self.attach, *((self.timens,) if self.timens is not None else ()))
        self.attach, self.timens, self.pidfd, self._line = (), None, -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        # Removed under us.
        return None
