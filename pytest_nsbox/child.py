"""The forked test's side of lockstep: what it reports, in frames, and how it ends.

Life of a child, after the fork::

    enter()     own process group, box, limits, recording of warnings and coverage
    ...         pytest's ordinary protocol goes on: setup, call, teardown
    report()    after each phase: the report, and what the phase left that pytest's process must know
    finish()    the last frame, then `os._exit`; there is no other way out

In a group (`groups`) a test that another one follows ends with `hand_over` instead, and `begin` starts the next.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pytest_nsbox import inherited, internals, output
from pytest_nsbox.bookkeeping import Notes
from pytest_nsbox.garbage import Garbage
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.pages import written
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.real import os
from pytest_nsbox.relay import (
    Channel,
    ChannelClosedError,
    exception_to_data,
    is_plain,
    passed_to_data,
    report_to_data,
    set_random_state,
)
from pytest_nsbox.warned import warning_to_data

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Iterable

    import pytest

    from pytest_nsbox.coverage_data import Measured
    from pytest_nsbox.groups import Group
    from pytest_nsbox.relay import Frame
    from pytest_nsbox.shell import Shell

# What pytest itself keeps on items; everything else that is plain data was put there by a hook of somebody else.
_PYTEST_ATTRIBUTES: Final = frozenset(
    [
        "name",
        "config",
        "session",
        "path",
        "keywords",
        "own_markers",
        "extra_keyword_matches",
        "stash",
        "_nodeid",
        "_store",
        "_id",
        "_report_sections",
        "user_properties",
        "_obj",
        "originalname",
        "callspec",
        "_fixtureinfo",
        "fixturenames",
        "funcargs",
        "_request",
        "_instance",
        "setup",
        "runtest",
        "teardown",
        "parent",
        "fspath",
        "_excinfo",
        "_explicit_tearDown",
        "_testcase",
        "location",
        "dtest",
        "runner",
        "fixture_request",
        "_arg2fixturedefs",
        "obj",
    ]
)


# Of this process, once it is forked.
current: Child | None = None
_exit: Final = os._exit  # coverage's `patch = _exit` would save data files


class Child:
    """This process, once forked."""

    def __init__(
        self, item: pytest.Item, channel: Channel, *, lockstep_output: bool, group: Group | None = None
    ) -> None:
        self.item = item
        self.started = False  # it takes down what the test leaves
        self.tells_pages = False  # of its memory, which it wrote to
        self.signals: Iterable[int] = ()  # blocked before the fork
        self.clock_jump = 0.0  # seconds, of the monotonic clock on the way into the box, within the first phase
        self.config = item.config
        self.channel = channel
        self.group = group
        self.keywords: dict[str, Any] = dict.fromkeys(item.keywords, 1)  # as a report spells them
        self.due: str | None = None  # the phase whose report the next makereport makes
        self.last_report: pytest.TestReport | None = None
        self.following: pytest.Item | None = None  # the test that comes next in this process
        self.shell: Shell | None = None  # to be opened where a phase fails
        self.fresh = False  # a test was begun here, and its set-up was not yet
        self._lockstep_output = lockstep_output
        self._takes_turns = lockstep_output or group is not None
        self._records_warnings = internals.records_warnings(self.config)
        self._warnings: list[warnings.WarningMessage] = []
        self._catch: warnings.catch_warnings[Any] | None = None
        self._attributes = {name: _copy(value) for name, value in plain_attributes(self.item)}
        self._notes = Notes(item)
        self._stops = self._read_stops()
        self._measured: Measured | None = None
        self._garbage: Garbage | None = None
        self._random_state: Any = None
        self._terminal = output.terminal_state(self.config)
        self._finishing = False

    # --- at the fork

    def enter(self, enter_box: Callable[[], None], random_state: Any) -> None:
        """Become the test's process; a failure is reported as the box's, and ends it."""
        global current  # noqa: PLW0603 - what the process is
        current = self
        try:
            os.setpgid(0, 0)
            # What was meant for pytest's process group, pytest's own process acts on.
            signal.sigtimedwait((signal.SIGINT,), 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, self.signals)
            enter_box()
        except BaseException as error:  # noqa: BLE001 - nothing may come out of a fork
            told = isinstance(error, (BoxFailed, KernelError))
            self._send_and_exit("failed", text=str(error) if told else f"{type(error).__name__}: {error}")
        # os.fork made every child's generator start anew; a plain run carries on with one sequence
        random.setstate(random_state)
        self._random_state = random_state
        internals.keep_only_item_in_child(self.item, lambda: self.following)
        inherited.guard_popen()

    def wait_for_turn(self) -> pytest.Item | None:
        """Forked ahead: wait until the test before ours is over; return the one after ours, in another process."""
        try:
            frame = self.channel.receive()
        except (ChannelClosedError, OSError):  # pytest has no use for us
            _exit(0)
        self.clock_jump = 0.0  # no phase has begun
        if frame["random"] is not None:
            set_random_state(frame["random"])
            self._random_state = random.getstate()
        self.fresh = True
        number = frame["following"]
        return None if number is None else self.item.session.items[number]

    def start(self) -> None:
        """The test's own set-up starts now: whatever it leaves from here on is told."""
        self.started = True
        if self.group is not None:
            from pytest_nsbox import succession

            succession.forget_recorded_warnings()
        self._record_warnings()
        self._measured = _start_measuring()
        self._garbage = Garbage.start(self.config)

    def _record_warnings(self) -> None:
        if self._records_warnings:
            self._catch = warnings.catch_warnings(record=True)
            self._warnings = self._catch.__enter__()

    # --- what the hooks of this process tell

    def report(self, report: pytest.TestReport, excinfo: pytest.ExceptionInfo[BaseException] | None) -> None:
        """Send the report of a phase, what the phase raised, and what else it left."""
        report.duration -= self.clock_jump
        self.clock_jump = 0.0
        left = self._left_by_phase()
        if excinfo is not None:
            left["raised"] = exception_to_data(excinfo.value)
        self.due, self.last_report = None, report
        if self.shell is not None and report.failed:
            self.shell.open_for(self, report)
        _flush()  # what it printed past the capture comes before what pytest prints of the report
        passed = passed_to_data(report, self.keywords)
        if passed is not None:
            self.channel.send("passed", report=passed, **left)
        else:
            self.channel.send("report", report=self._serialise(report), **left)
        if self._takes_turns:
            self.await_go()

    def log(self, report: Any) -> None:
        """Send a report that something logged besides the phases' (subtests, plugins)."""
        if report is not self.last_report:
            _flush()
            captured = output.is_capturing(self.config)
            self.channel.send("log", report=self._serialise(report), captured=captured)
            if self._lockstep_output or captured:
                self.await_go()

    def await_go(self) -> None:
        """Wait until pytest has printed what it knows, since its output and ours go to one terminal, or until it has
        said, before the tear-down in a group, which test comes next.
        """
        frame = self.channel.receive()
        if self.group is not None and "following" in frame:
            self.following = self.group.items.get(frame["following"])
            session = self.item.session
            session.shouldstop, session.shouldfail = self._stops = frame["stops"]
        self._take_terminal_state(frame)

    def _take_terminal_state(self, frame: Frame) -> None:
        if "terminal" in frame:
            self._terminal = frame["terminal"]
            output.set_terminal_state(self.config, self._terminal)

    def tell_limit(self, seconds: float | None, thread: bool) -> None:  # noqa: FBT001
        """Tell of pytest-timeout's timer in this process, or of its end."""
        self.channel.send("limit", seconds=seconds, thread=thread)

    def ask(self, what: str | list[Any]) -> Any:
        """Ask pytest's process something about this box (usage, changes, inspect), or about an image (a list)."""
        self.channel.send("ask", what=what)
        reply = self.channel.receive()
        while reply["t"] != "reply":
            reply = self.channel.receive()
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["value"]

    def connect(self) -> socket:
        """Ask pytest's process for a connection to the warden, on which containers can be started."""
        self.channel.send("ask", what="connect")
        return self.channel.receive_socket()

    def _serialise(self, report: pytest.TestReport) -> dict[str, Any]:
        return report_to_data(self.config, report)

    # --- the end

    def finish(self) -> NoReturn:
        """Send the last frame and end; never returns, in whatever state the test left this process."""
        self._leave("end")

    def hand_over(self) -> None:
        """The test is over, and another one follows in this process: send what the test left, besides its reports."""
        _flush()
        left = self._left_in_the_end()
        if self._catch is not None:
            self._catch.__exit__(None, None, None)
            self._catch = None
        self.channel.send("done", **left)

    def begin(self, item: pytest.Item, frame: Frame) -> None:
        """Another test of the group, as pytest's process says in a frame ``next``."""
        self.item, self.due, self.last_report, self.following = item, None, None, None
        self.keywords = dict.fromkeys(frame["keywords"], 1)
        for name, value in frame["attributes"].items():
            setattr(item, name, value)
        self._attributes = {name: _copy(value) for name, value in plain_attributes(self.item)}
        self._notes.begin(item)
        self._stops = self._read_stops()
        self._take_terminal_state(frame)
        output.forget_live_log(self.config)
        self.fresh = True

    def begin_inside(self) -> None:
        """`begin`, continued inside pytest's wrappers of the test's protocol."""
        self._record_warnings()

    def interrupted(self, error: KeyboardInterrupt) -> NoReturn:
        """Ctrl-C reached the test: its fixtures are torn down, then pytest hears of it, and where it was."""
        place = None
        traceback = error.__traceback__
        while traceback is not None:
            code = traceback.tb_frame.f_code
            place = (code.co_filename, traceback.tb_lineno, code.co_name)
            traceback = traceback.tb_next
        self._tear_down()
        self._leave("interrupt", place=place)

    def exited(self, message: str, returncode: int | None) -> NoReturn:
        """The test called `pytest.exit`."""
        self._tear_down()
        self._leave("exit", message=message, returncode=returncode)

    def crashed(self, error: BaseException) -> NoReturn:
        """Pytest's own protocol failed in this process (an internal error in a hook)."""
        import traceback

        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self._leave("internal", text=text)

    def tear_down_rest(self) -> None:
        """No test of the group follows after all: end its fixtures. There is no report to tell an error in."""
        self.following = None
        try:
            self.item.session._setupstate.teardown_exact(None)
        except Exception:  # noqa: BLE001 - whatever a fixture raises
            import traceback

            traceback.print_exc()

    def _tear_down(self) -> None:
        # The interruption is the news; pytest does not report errors of a teardown after one either.
        self.following = None
        with contextlib.suppress(BaseException):
            self.item.session._setupstate.teardown_exact(None)

    def _leave(self, kind: str, **fields: Any) -> NoReturn:
        if self._finishing:  # a second interruption while we end
            _exit(1)
        self._finishing = True
        try:
            # Another Ctrl-C must not cut the last frame in two.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            if self._garbage is not None and kind == "end" and (unraisable := self._garbage.collect()):
                fields["unraisable"] = unraisable
            _flush()
            fields.update(self._left_in_the_end())
            if self.tells_pages and kind == "end":
                fields["pages"] = written()
            self._send_and_exit(kind, **fields)
        except BaseException as error:  # noqa: BLE001 - nothing may come out of a fork
            self._send_and_exit("failed", text=f"the result could not be sent: {type(error).__name__}: {error}")
        finally:
            _exit(0)

    def _send_and_exit(self, kind: str, **fields: Any) -> NoReturn:
        try:
            self.channel.send(kind, **fields)
        finally:
            _exit(0)

    # --- what else a phase leaves

    def _left_in_the_end(self) -> dict[str, Any]:
        left = self._left_by_phase()
        state = random.getstate()
        if state != self._random_state:
            left["random"] = self._random_state = state
        if self._measured is not None:
            left["coverage"] = self._measured.collect()
        return left

    def _left_by_phase(self) -> dict[str, Any]:
        left: dict[str, Any] = {}
        if self._warnings:
            left["warnings"] = [warning_to_data(message) for message in self._warnings]
            self._warnings.clear()
        attributes = {}
        for name, value in plain_attributes(self.item):
            if name not in self._attributes or self._attributes[name] != value:
                attributes[name] = self._attributes[name] = _copy(value)
        if attributes:
            left["attributes"] = attributes
        left.update(self._notes.new())
        stops = self._read_stops()
        if stops != self._stops:
            self._stops = left["stops"] = stops
        if getattr(self.last_report, "_pdbshown", False):  # the debugger's plugin noted that it printed it
            left["shown"] = True
        state = output.terminal_state(self.config) if self._lockstep_output else self._terminal
        if state != self._terminal:  # else it is what the parent knew, and may have gone on from
            self._terminal = left["terminal"] = state
        return left

    def _read_stops(self) -> list[bool | str]:
        return [self.item.session.shouldstop, self.item.session.shouldfail]


def plain_attributes(item: pytest.Item) -> list[tuple[str, Any]]:
    """What hooks of others have put on an item and the other process can be told."""
    return [
        (name, value)
        for name, value in item.__dict__.items()
        if name not in _PYTEST_ATTRIBUTES and is_others(item, name) and is_plain(value)
    ]


def is_others(item: pytest.Item, name: str) -> bool:
    """Say if an attribute of an item is neither pytest's nor its class's, which decide what the item is and may do."""
    return name not in _PYTEST_ATTRIBUTES and not hasattr(type(item), name)


def _copy(value: Any) -> Any:
    if type(value) is list:
        return [_copy(element) for element in value]
    if type(value) is dict:
        return {key: _copy(element) for key, element in value.items()}
    return value


def _flush() -> None:
    """Empty our buffers before pytest goes on in the same terminal, file or pipe."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()  # type: ignore[union-attr]
        except (AttributeError, OSError, ValueError):
            continue


def _start_measuring() -> Measured | None:
    if "coverage" not in sys.modules:
        return None
    from pytest_nsbox.coverage_data import Measured

    return Measured.start()
