"""Each call to the kernel fails once: the error tells which, and nothing is left."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_nsbox.kernel.cgroup_tree import Files
from pytest_nsbox.kernel.mount import read_mounts
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.mounts import Tmpfs, Volume
from pytest_nsbox.policy.plan import make_plan
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden import execute
from pytest_nsbox.warden.box import Box, begin_box, end, finish_box, make_box
from pytest_nsbox.warden.directory import remove
from pytest_nsbox.warden.doors import Doors
from pytest_nsbox.warden.enter import bind_late
from pytest_nsbox.warden.late import find_late
from pytest_nsbox.warden.session import Session
from tests.warden.boxes import in_a_process

pytestmark = pytest.mark.needs("root", "overlay", "user namespace")

SPECS = {
    "plain": Spec(),
    "much": Spec(
        mem=64 << 20,
        pids=20,
        net="none",
        hostname="box",
        clock=(("monotonic", 5.0),) if os.path.exists("/proc/self/ns/time") else (),
        readonly=True,
        disk=1 << 20,
        tmpfs=(Tmpfs("/made/t"),),
        volumes=(Volume("/usr", "/made/v", readonly=True), Volume("data", "/data", kind="volume")),
    ),
    "privileged": Spec(privileged=True),
}


class Fuse:
    """Blows at call number `at`, counted from `arm` on, in the warden or in an init."""

    def __init__(self) -> None:
        self.at = 0
        self.inside = False
        self.calls = 0
        self.blown = ""

    def arm(self, at: int, *, inside: bool) -> None:
        self.at, self.inside, self.calls, self.blown = at, inside, 0, ""

    def burn(self, name: str) -> bool:
        if self.at == 0 or (os.getpid() == 1) != self.inside:
            return False
        self.calls += 1
        if self.calls == self.at:
            self.blown = name
            return True
        return False


def faulty_doors(fuse: Fuse) -> Doors:
    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if fuse.burn(name):
                raise KernelError("injected", name, errno.EIO)
            return function(*arguments, **options)

        return call

    def wrap_file(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if fuse.burn(f"cgroup {name}"):
                raise OSError(errno.EIO, "injected")
            return function(*arguments, **options)

        return call

    doors, file_calls = Doors(), Files()
    for name in dir(Files):
        # A close or a rmdir that fails cannot be helped.
        if not name.startswith("_") and name not in ("close", "rmdir", "getxattr", "kill"):
            setattr(file_calls, name, wrap_file(name, getattr(Files, name)))
    for name in dir(Doors):
        if not name.startswith("_") and name not in ("cgroup_files", "close", "recorded"):
            setattr(doors, name, wrap(name, getattr(Doors, name)))
    doors.cgroup_files = file_calls
    doors.recorded = False
    return doors


def own_fds() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
    return found


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def cgroups(session: Session) -> list[str]:
    parent = (session.cgroup_parent or "").strip("/")
    top = Path("/sys/fs/cgroup")
    boxes = [*top.glob(f"*/{parent}/nsbox-{session.name}/*"), *top.glob(f"{parent}/nsbox-{session.name}/*")]
    return [str(path) for path in boxes if path.is_dir()]


@contextmanager
def opened(doors: Doors) -> Iterator[Session]:
    session = Session(doors, tempfile.gettempdir(), os.environ.get("PYTEST_NSBOX_CGROUP_PARENT"))
    try:
        session.open()
        yield session
    finally:
        assert session.close() == []
        assert not os.path.lexists(session.directory)


def make(session: Session, spec: Spec) -> Box:
    return make_box(session, "box", spec, make_plan(spec, session.facts), ("/usr/share",))


def unmake(session: Session, box: Box) -> None:
    end(box)
    for fd in (box.control, box.clock):
        if fd >= 0:
            os.close(fd)
    box.node.remove()
    if session.is_as_new(box.tree):
        box.tree.renew()
    box.tree.remove()


def state(session: Session) -> dict[str, object]:
    """All that a box which could not be made might leave."""
    return {
        "mounts": sorted(line.split(" ")[4] for line in read_mounts().splitlines()),
        "fds": own_fds(),
        "children": children(),
        "cgroups": cgroups(session),
        "layers": os.listdir("scratch/layers"),
        "roots": os.listdir("root"),
    }


@pytest.mark.parametrize("inside", [False, True], ids=["warden", "init"])
@pytest.mark.parametrize("name", SPECS)
def test_a_box_that_cannot_be_made_leaves_nothing(name: str, inside: bool) -> None:
    spec = SPECS[name]

    def play() -> list[str]:
        fuse = Fuse()
        blown: list[str] = []
        with opened(faulty_doors(fuse)) as session:
            # What the first box makes for all that follow.
            unmake(session, make(session, spec))
            before = state(session)
            for at in range(1, 500):
                fuse.arm(at, inside=inside)
                try:
                    box = make(session, spec)
                except KernelError as error:
                    assert error.errno == errno.EIO, error
                    assert "injected" in str(error) or "cgroup" in str(error), error
                    blown.append(fuse.blown or error.target)
                else:
                    unarmed, swallowed = fuse.calls < at, fuse.blown
                    fuse.arm(0, inside=False)
                    unmake(session, box)
                    assert not swallowed
                    if inside or unarmed:
                        break
                fuse.arm(0, inside=False)
                assert state(session) == before, (at, blown[-1:])
            unmake(session, make(session, spec))
        return blown

    blown = in_a_process(play)
    expected = {"clone_tree", "attach", "pivot_here", "die_with_parent"} if inside else {"clone3", "cgroup mkdir"}
    assert expected <= set(blown)


def test_an_init_that_fails_takes_the_program_along_that_waits_for_it() -> None:
    spec = Spec()

    def play() -> str:
        fuse = Fuse()
        with opened(faulty_doors(fuse)) as session:
            spawner = execute.Spawner(session.doors)
            unmake(session, make(session, spec))
            before = state(session)
            fuse.arm(3, inside=True)
            box, undo = begin_box(session, "box", spec, make_plan(spec, session.facts), ())
            program = execute.Program(argv=("true",), env={}, workdir=None, user=None, spec=spec)
            # Too late if the init has ended already.
            spawner.fork_early(box, program, -1, (), undo)
            try:
                finish_box(session, box, undo)
            except KernelError as error:
                told = error.call
            assert state(session) == before
            spawner.close()
        return told

    assert in_a_process(play) == "injected"


def test_a_session_that_cannot_be_opened_leaves_nothing() -> None:
    def play(at: int) -> str:
        fuse = Fuse()
        before = (own_fds(), children())
        fuse.arm(at, inside=False)
        session = Session(faulty_doors(fuse), tempfile.gettempdir(), os.environ.get("PYTEST_NSBOX_CGROUP_PARENT"))
        try:
            session.open()
        except (KernelError, BoxFailed) as error:
            assert "injected" in str(error) or fuse.blown.startswith("cgroup")
        blown = fuse.blown
        fuse.arm(0, inside=False)
        assert session.close() == []
        assert not os.path.lexists(session.directory)
        assert (own_fds(), children()) == before
        return blown

    blown = []
    for at in range(1, 500):
        found = in_a_process(partial(play, at))
        if not found:
            break
        blown.append(found)
    assert {"unshare", "make_directory", "clone_tree", "attach", "write_maps"} <= set(blown)


def test_a_path_that_cannot_be_bound_late_leaves_the_warden_where_it_was(tmp_path: Path) -> None:
    late = tmp_path / "late"
    late.mkdir()

    def play() -> list[str]:
        fuse = Fuse()
        blown: list[str] = []
        with opened(faulty_doors(fuse)) as session:
            box = make(session, Spec())
            before = (state(session), os.getcwd(), os.readlink("/proc/self/ns/mnt"))
            for at in range(1, 100):
                fuse.arm(at, inside=False)
                try:
                    bind_late(session, box, {str(path): place_of(path) for path in (late, tmp_path)})
                except KernelError as error:
                    assert "injected" in str(error)
                    blown.append(fuse.blown)
                finally:
                    finished = fuse.calls < at
                    fuse.arm(0, inside=False)
                assert (state(session), os.getcwd(), os.readlink("/proc/self/ns/mnt")) == before, (at, blown[-1:])
                if finished:
                    break
            unmake(session, box)
        return blown

    assert {"clone_tree", "setns", "attach", "set_fs_ids"} <= set(in_a_process(play))


@pytest.mark.parametrize("late", [False, True], ids=["while a box is made", "when it is handed out"])
@pytest.mark.parametrize("call", ["clone_tree", "attach"])
def test_a_socket_of_others_that_goes_in_between_is_left_out(tmp_path: Path, call: str, late: bool) -> None:
    path = tmp_path / "socket"

    def name_of(argument: object) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{argument}") if isinstance(argument, int) else str(argument)
        except FileNotFoundError:
            return path.name  # in the box already, for whose /proc we are nobody

    def play() -> list[str]:
        doors = Doors()
        went: list[str] = []
        with opened(doors) as session, socket.socket(socket.AF_UNIX) as server:
            box = make(session, Spec()) if late else None
            server.bind(str(path))
            server.listen()
            sockets = {name: at for name, at in find_late((), sockets=True).items() if name == str(path)}
            real = getattr(doors, call)

            def call_after_it_went(*arguments: Any, **options: Any) -> Any:
                if any(name_of(argument).endswith(path.name) for argument in arguments):
                    path.unlink(missing_ok=True)
                    went.append(call)
                return real(*arguments, **options)

            setattr(doors, call, call_after_it_went)
            if box is not None:
                bind_late(session, box, sockets)
                unmake(session, box)
            else:
                session.take_tree(make_plan(Spec(), session.facts), sockets).remove()
        return went

    assert call in in_a_process(play)


def place_of(path: Path) -> tuple[int, int]:
    at = path.stat()
    return at.st_dev, at.st_ino


def test_what_cannot_be_removed_is_told_at_the_end() -> None:
    def play() -> list[str]:
        session = Session(Doors(), tempfile.gettempdir(), os.environ.get("PYTEST_NSBOX_CGROUP_PARENT"))
        session.open()
        # Something that the warden did not mount keeps the directory busy.
        busy = f"{session.directory}/host"
        fd = Doors.new_mount("tmpfs")
        os.chdir("/")
        Doors.detach(session.directory)
        Doors.attach(fd, busy)
        problems = session.close()
        Doors.detach(busy)
        remove(session.directory)
        return [problem.replace(session.directory, "DIR") for problem in problems]

    assert in_a_process(play) == ["remove DIR/host: Device or resource busy"]
