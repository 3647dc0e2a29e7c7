"""Inits that run a program of system calls: what they do where one call fails, and what is done where none can be."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pytest_nsbox.kernel.program import Program, Starter
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.plan import make_plan
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden import recorded
from pytest_nsbox.warden.box import begin_box, finish_box
from pytest_nsbox.warden.doors import Doors
from pytest_nsbox.warden.recorded import Recorded, try_out
from tests.capabilities import require
from tests.warden.boxes import in_a_process
from tests.warden.test_faults import make, opened, state, unmake

pytestmark = [
    pytest.mark.needs("root", "overlay", "user namespace"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code of x86-64"),
]

SPECS = {"plain": Spec(), "much": Spec(mem=64 << 20, pids=20, net="none", hostname="box", readonly=True, disk=1 << 20)}
NO_SUCH_CALL = 5000


@pytest.mark.parametrize("name", SPECS)
def test_each_call_fails_once(name: str) -> None:
    spec = SPECS[name]

    def play() -> list[str]:
        add, blown = Program.add, []
        with opened(Doors()) as session:
            unmake(session, make(session, spec))
            before = state(session)
            for at in range(500):

                def add_a_bad_one(
                    self: Program, call: str, target: str, number: int, *words: Any, **options: Any
                ) -> None:
                    add(self, call, target, NO_SUCH_CALL if len(self.calls) == at else number, *words, **options)  # noqa: B023

                kept, session.recorded = session.recorded, Recorded()
                assert session.recorded.can(make_plan(spec, session.facts))
                Program.add = add_a_bad_one  # type: ignore[method-assign]
                try:
                    box = make(session, spec)
                except KernelError as error:
                    assert error.errno == errno.ENOSYS, error
                    blown.append(error.call)
                else:
                    assert box.running is not None
                    unmake(session, box)
                    break
                finally:
                    Program.add = add  # type: ignore[method-assign]
                    session.recorded.close()
                    session.recorded = kept
                assert state(session) == before, blown[-1:]
            unmake(session, make(session, spec))
        return blown

    assert {"dup2", "close_range", "open_tree", "pivot_root", "mount proc", "execveat"} <= set(in_a_process(play))


def test_an_init_that_was_killed_is_told() -> None:
    def play() -> str:
        with opened(Doors()) as session:
            unmake(session, make(session, Spec()))
            before = state(session)
            write_maps = session.doors.write_maps

            def write_maps_and_kill(pid: int, uid_map: str, gid_map: str) -> None:
                write_maps(pid, uid_map, gid_map)
                os.kill(pid, 9)

            session.doors.write_maps = write_maps_and_kill
            try:
                box, undo = begin_box(session, "box", Spec(), make_plan(Spec(), session.facts), ())
                finish_box(session, box, undo)
            except BoxFailed as error:
                told = str(error)
            del session.doors.write_maps
            assert state(session) == before
            unmake(session, make(session, Spec()))
        return told

    assert in_a_process(play) == "the first process of the box ended before the box was ready"


def refused(*_: object) -> None:
    raise KernelError("mprotect", "machine code", errno.EACCES)


@pytest.mark.parametrize(
    ("where", "instead"),
    [
        ("pytest_nsbox.kernel.program.libc.machine_code", refused),
        ("pytest_nsbox.kernel.program._elf", lambda: b"not a program"),
        ("pytest_nsbox.kernel.program.CLONE", b"\xb8\xda\xff\xff\xff\x48\x98\xc3"),  # returns -ENOSYS
        ("pytest_nsbox.warden.recorded._is_in_its_clocks", lambda _: False),
    ],
    ids=["no executable memory", "no executable file", "no such clone3", "another time"],
)
def test_where_it_is_impossible_inits_are_forks(where: str, instead: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, instead)

    def play() -> tuple[bool, str]:
        descriptors = os.listdir("/proc/self/fd")
        assert try_out() is None
        assert os.listdir("/proc/self/fd") == descriptors
        with opened(Doors()) as session:
            box = make(session, Spec())
            made = box.running is None, Path(f"/proc/{box.pid}/comm").read_text()
            unmake(session, box)
        return made

    if "clocks" in where:
        require("time namespace")
    assert in_a_process(play) == (True, "nsbox-init\n")


def test_boxes_of_the_same_kind_share_what_was_recorded() -> None:
    def play() -> tuple[int, int]:
        with opened(Doors()) as session:
            plan = make_plan(Spec(), session.facts)
            begun = [begin_box(session, f"box-{number}", Spec(), plan, ()) for number in range(3)]
            for box, undo in begun:
                finish_box(session, box, undo)
            assert len({os.readlink(f"/proc/{box.pid}/ns/pid") for box, _ in begun}) == 3
            ((_, pool),) = session.recorded._programs.values()
            waiting = len(pool)
            for box, _ in begun:
                unmake(session, box)
            for number in range(recorded._MOST_PROGRAMS + 3):
                unmake(session, make(session, Spec(hostname=f"box-{number}")))
            return waiting, len(session.recorded._programs)

    assert in_a_process(play) == (3, recorded._MOST_PROGRAMS)


def test_the_warden_can_be_looked_into_as_before() -> None:
    """Its memory is an init's for a moment, and the change of ids there forbids it."""

    def play() -> tuple[int, int]:
        with opened(Doors()) as session:
            before = os.stat("/proc/self/environ").st_uid, dumpable()
            unmake(session, make(session, Spec()))
            return before == (os.stat("/proc/self/environ").st_uid, dumpable()), dumpable()

    assert in_a_process(play) == (True, 1)


def dumpable() -> int:
    import ctypes

    return int(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))


def test_a_starter_is_closed_with_its_session() -> None:
    def play() -> bool:
        before = os.listdir("/proc/self/fd")
        with opened(Doors()) as session:
            assert isinstance(session.recorded._starter, Starter) is False
            unmake(session, make(session, Spec()))
            assert isinstance(session.recorded._starter, Starter)
        return before == os.listdir("/proc/self/fd")

    assert in_a_process(play)
