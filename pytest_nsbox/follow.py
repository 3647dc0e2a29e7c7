"""Following a test's process from pytest's: its frames as they come, and its end, whatever it is."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_nsbox import bookkeeping, internals, output, reporting, timeouts
from pytest_nsbox.attempt import ATTEMPT, Attempt, reap_child
from pytest_nsbox.child import is_others
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.real import os
from pytest_nsbox.relay import (
    ChannelClosedError,
    Frame,
    exception_from_data,
    leaves_nothing,
    passed_from_data,
    report_from_data,
    set_random_state,
)
from pytest_nsbox.warned import warning_from_data

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_nsbox.boxes import Boxes
    from pytest_nsbox.hints import Hints
    from pytest_nsbox.pages import Pages
    from pytest_nsbox.shell import Shell
    from pytest_nsbox.terminal import Terminal

_LAST: Final = frozenset(["end", "interrupt", "exit", "failed", "internal"])  # frames after which none comes
INTERRUPT_GRACE: Final = 10.0  # seconds that a test has for its teardown after Ctrl-C


class Follower:
    """Waits for what the children of a session report and how they end."""

    def __init__(self, config: pytest.Config, boxes: Boxes, terminal: Terminal, pages: Pages) -> None:
        self.config = config
        self.output_in_step = output.prints_meanwhile(config)
        self._boxes = boxes
        self._terminal = terminal
        self._pages = pages
        self.all_plain = True  # the frames since somebody set this
        self.shell = _make_shell(config, terminal)
        self.ran: list[pytest.Item] = []  # in boxes of their own, so far
        self.undone: Mapping[str, str] = {}  # fixtures that moved into boxes, and why (see placement.py)
        self.unraisable: list[str] = []  # raised where nobody could catch it, when tests were over
        self._hints: Hints | None = None
        self._dying: list[int] = []  # children whose last frame came, not reaped yet

    def wait(self, attempt: Attempt, phase: str) -> None:
        """Until the child's report of the phase is here (for teardown: until its process has said its last).

        Raises what ended the test otherwise: `SandboxError`, KeyboardInterrupt, `pytest.exit`.
        """
        __tracebackhide__ = True
        attempt.phase = phase
        if (self.output_in_step or attempt.grouped) and phase != "setup":
            self._say_go(attempt, phase)
        while True:
            if phase != "teardown" and phase in attempt.reports:
                return
            try:
                frame = attempt.next_frame(attempt.deadline)
            except TimeoutError:
                self._time_out(attempt)
                frame = None
            except ChannelClosedError as error:
                frame = {"t": "failed", "text": str(error)}
            except KeyboardInterrupt:
                raise self.interrupt(attempt) from None
            except BaseException:
                # A signal handler's exception, such as pytest-timeout's: the test ends with it.
                attempt.failed = True
                self.abandon(attempt)
                raise
            if frame is None:
                self._died(attempt)
            elif self._take(attempt, frame):
                return

    def reraise(self, attempt: Attempt) -> None:
        """Raise what the phase raised whose report has come, for those who look at ``CallInfo.excinfo``.

        Its class is the test's where pytest's process knows that; its traceback is one entry, where the test broke.
        """
        __tracebackhide__ = True
        raised, attempt.raised = attempt.raised, None
        if raised is None:
            return
        error = exception_from_data(raised)
        if isinstance(error, (KeyboardInterrupt, pytest.exit.Exception)):
            return  # they ended the phase and not the run
        attempt.stand_in = error
        crash = getattr(getattr(attempt.last_report, "longrepr", None), "reprcrash", None)
        path, line, name = reporting.place_of(attempt.item)
        if crash is not None:
            path, line = str(crash.path), int(crash.lineno)
        raise reporting.placed(error, path, line, name)

    def _say_go(self, attempt: Attempt, phase: str = "") -> None:
        fields: Frame = {}
        if self.output_in_step:
            flush_terminal(self.config)
            fields["terminal"] = output.terminal_state(self.config)
        if attempt.grouped and phase == "teardown":
            session, following = attempt.item.session, attempt.following
            fields["following"] = 0 if following is None else id(following)
            fields["stops"] = [session.shouldstop, session.shouldfail]
        self.send(attempt, "go", **fields)

    def send(self, attempt: Attempt, kind: str, **fields: Any) -> None:
        """Tell the test's process something. If it died meanwhile, the next wait tells how."""
        assert attempt.channel is not None
        with contextlib.suppress(OSError):
            attempt.channel.send(kind, **fields)

    def _take(self, attempt: Attempt, frame: Frame) -> bool:
        """Act on one frame; True when it was the last."""
        if frame["t"] == "limit":
            timeouts.guard(attempt, frame)
            return False
        self.all_plain = self.all_plain and leaves_nothing(frame)
        self._take_leavings(attempt, frame)
        kind = frame["t"]
        if kind in ("report", "passed"):
            report = self._read(attempt, frame)
            assert report.when is not None
            if report.failed:
                attempt.failed = True
                self._boxes.blame_limits(attempt, report)
                self._hint(attempt, report)
            attempt.reports[report.when] = attempt.last_report = report
            attempt.reported += report.duration
            attempt.sections = list(report.sections)
            attempt.raised = frame.get("raised")
            if (self.output_in_step or attempt.grouped) and report.when == "teardown":
                self._say_go(attempt)
        elif kind == "log":
            self._log(attempt, frame)
        elif kind == "ask":
            self._answer(attempt, frame["what"])
        elif kind == "pdb":
            attempt.pause(entered=bool(frame["entered"]))
            if attempt.paused:
                self._terminal.give()
            if self.shell is not None and frame.get("shell"):
                self.shell.opened = True
        elif kind == "end":
            self.settle(attempt)
            return True
        elif kind == "done":
            attempt.stopped, attempt.lapped = time.perf_counter(), True
            self._terminal.take_back()
            self._boxes.begin_release(attempt)
            return True
        else:
            self.settle(attempt)
            self._raise_ending(frame)
        return False

    def _hint(self, attempt: Attempt, report: pytest.TestReport) -> None:
        if self._hints is None:
            from pytest_nsbox.hints import Hints

            self._hints = Hints()
        self._hints.used_up(attempt.item, report, self.undone)
        if not attempt.grouped and report.when != "teardown":
            self._hints.lost_state(attempt.item, report, self.ran)

    def _log(self, attempt: Attempt, frame: Frame) -> None:
        """Have the reporters hear of a report besides the phases', a subtest's or a plugin's."""
        report = self._read(attempt, frame)
        attempt.failed = attempt.failed or report.failed
        captured = frame["captured"] is True
        with output.captured_as_the_test(self.config) if captured else contextlib.nullcontext():
            attempt.item.ihook.pytest_runtest_logreport(report=report)
            if captured:
                flush_terminal(self.config)
        if captured or self.output_in_step:
            self._say_go(attempt)

    def _read(self, attempt: Attempt, frame: Frame) -> pytest.TestReport:
        """The report that a frame brought; one that cannot be read is the end of the test. Raises BoxFailed."""
        try:
            return self.read_report(attempt, frame)
        except ChannelClosedError as error:
            self.settle(attempt)
            raise BoxFailed(str(error)) from None

    def read_report(self, attempt: Attempt, frame: Frame) -> pytest.TestReport:
        """The report that a frame brought. Raises ChannelClosedError if there is no reading it."""
        if frame["t"] == "passed":
            return passed_from_data(attempt.item, attempt.keywords, frame["report"])
        return report_from_data(self.config, frame["report"])

    def _raise_ending(self, frame: Frame) -> None:
        kind = frame["t"]
        if kind == "interrupt":
            raise _interruption(frame)
        if kind == "exit":
            raise pytest.exit.Exception(frame["message"], frame["returncode"])
        if kind == "internal":
            raise internals.ProtocolFailed(f"in the test's process\n{frame['text']}")
        if kind == "failed":
            raise BoxFailed(frame["text"])
        raise BoxFailed(f"the test's process sent a frame of unknown kind {kind!r}")

    def _take_leavings(self, attempt: Attempt, frame: Frame) -> None:
        item = attempt.item
        for data in frame.get("warnings", ()):
            internals.replay_warning(warning_from_data(data))
        self.take_attributes(item, frame)
        bookkeeping.take(item, frame)
        if "stops" in frame:
            stop, fail = frame["stops"]
            item.session.shouldstop = stop or item.session.shouldstop
            item.session.shouldfail = fail or item.session.shouldfail
        if "shown" in frame and attempt.last_report is not None:
            attempt.last_report.__dict__["_pdbshown"] = True  # so the terminal does not print it again
        if "terminal" in frame:
            output.set_terminal_state(self.config, frame["terminal"])
        self.take_end(frame)

    def take_attributes(self, item: pytest.Item, frame: Frame) -> None:
        """Keep what plugins noted at the item."""
        for name, value in frame.get("attributes", {}).items():
            if is_others(item, name):  # the test's bytes: they may be anything
                setattr(item, name, value)

    def take_end(self, frame: Frame) -> None:
        """Keep what a test's last frame tells for the session, not for the test."""
        if "random" in frame:
            set_random_state(frame["random"])
        if frame.get("coverage") is not None:
            self._boxes.coverage(frame["coverage"])
        if "unraisable" in frame:
            self.unraisable += frame["unraisable"]
        if "pages" in frame:
            self._pages.learn(frame["pages"])

    def _answer(self, attempt: Attempt, what: str) -> None:
        assert attempt.channel is not None
        try:
            if what == "connect":
                with contextlib.closing(self._boxes.connect(attempt)) as connection:
                    attempt.channel.send_socket(connection)
                return
            self.send(attempt, "reply", value=self._boxes.answer(attempt, what))
        except Exception as error:  # noqa: BLE001 - the test is told, whatever it is
            self.send(attempt, "reply", error=f"{type(error).__name__}: {error}")

    # --- ends

    def settle(self, attempt: Attempt) -> None:
        """The last frame is here: end the box. The child, whose memory takes a while to go, is reaped later."""
        assert attempt.box is not None
        attempt.stopped = time.perf_counter()
        self._terminal.take_back()
        attempt.end_box()
        self._boxes.begin_release(attempt)
        self.forget(attempt)

    def abandon(self, attempt: Attempt) -> None:
        """End a test that nobody will hear of any more."""
        attempt.end_box()
        attempt.signal(signal.SIGKILL)
        attempt.reap()
        self._terminal.take_back()
        self._boxes.begin_release(attempt)

    def forget(self, attempt: Attempt) -> None:
        """Reap a killed process some time."""
        attempt.close()
        if attempt.pid and attempt.zygote is None:
            self.reap_later(attempt.pid)

    def reap_later(self, pid: int) -> None:
        """Collect a child of ours when it has ended."""
        self._dying.append(pid)

    def reap_dying(self, *, wait: bool = False) -> None:
        """Collect children that ended since; an init cannot go before its box's processes are reaped."""
        self._dying = [pid for pid in self._dying if reap_child(pid, 0 if wait else os.WNOHANG) is None]

    def _died(self, attempt: Attempt) -> None:
        """The test's process ended before its last frame."""
        attempt.stopped, attempt.died, attempt.failed = time.perf_counter(), True, True
        status = attempt.reap()
        self._terminal.take_back()
        if self.shell is not None:
            self.shell.open_in(attempt, self._boxes.enter)
        attempt.end_box()
        raise reporting.placed(self._boxes.died(attempt, status), *reporting.place_of(attempt.item))

    def _time_out(self, attempt: Attempt) -> None:
        """Collect the stacks of the test's threads, then kill everything in the box."""
        attempt.timed_out = attempt.failed = True
        attempt.stacks = self._boxes.stacks(attempt)
        if self.shell is None or self.shell.opened:
            attempt.end_box()
        attempt.signal(signal.SIGKILL)

    def interrupt(self, attempt: Attempt) -> KeyboardInterrupt:
        """Ctrl-C: the test's own teardown runs; a second Ctrl-C or the end of the grace kills the box."""
        attempt.interrupt()
        deadline = time.perf_counter() + INTERRUPT_GRACE
        frame: Frame | None = None
        # The end of the grace, a test that scribbled, a second Ctrl-C: it ends without its teardown.
        with contextlib.suppress(TimeoutError, ChannelClosedError, KeyboardInterrupt):
            while (frame := attempt.next_frame(deadline)) is not None:
                self._take_leavings(attempt, frame)
                if frame["t"] in _LAST:
                    break
        self.settle(attempt)
        return _interruption(frame or {})

    def give_up(self, item: pytest.Item) -> None:
        """The protocol of pytest's process was left by an exception: nothing of the test may stay behind."""
        attempt = item.stash.get(ATTEMPT, None)
        if attempt is None or attempt.box is None or attempt.ended or attempt.lapped:
            return
        attempt.box.kill()
        if attempt.pid:
            attempt.reap()
        attempt.box.begin_release()


def _make_shell(config: pytest.Config, terminal: Terminal) -> Shell | None:
    if not config.option.sandbox_shell:
        return None
    from pytest_nsbox.shell import Shell

    return Shell(terminal)


def _interruption(frame: Frame) -> KeyboardInterrupt:
    """The KeyboardInterrupt that a test sent, raised where it met it."""
    interruption, place = KeyboardInterrupt(), frame.get("place")
    if place:
        reporting.placed(interruption, *place)
    return interruption


def flush_terminal(config: pytest.Config) -> None:
    """Empty the buffers that a fork would double."""
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    streams: Iterable[Any] = (sys.stdout, sys.stderr, getattr(getattr(terminal, "_tw", None), "_file", None))
    for stream in streams:
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):  # closed by a test that ran without a box
                stream.flush()
