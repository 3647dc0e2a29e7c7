"""Lockstep: one test's protocol in two processes, side by side.

The fork happens inside the item's own ``setup()``, after its collectors and outer fixtures are set up in pytest's
process. From there the child runs the rest of setup, the call and the teardown for real, and sends each phase's
report; pytest's process waits for each phase and hands the child's report on::

    pytest                                       child
    pytest_runtest_setup: hooks before the
      item's, outer fixtures, fork  ------------ function fixtures, the rest of the hooks
      Forked leaves the hook                     makereport  --report-->
    makereport: the child's                      pytest_runtest_call, makereport  --report-->
    pytest_runtest_call: waits                   pytest_runtest_teardown, makereport  --report, end--> _exit
    pytest_runtest_teardown: waits, reaps,
      usage, outer fixtures that end here

Every hook of a plugin or conftest therefore runs once per test; after the fork only in the child.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_nsbox import internals, reporting
from pytest_nsbox.child import Child
from pytest_nsbox.forking import fork_into
from pytest_nsbox.internals import Forked
from pytest_nsbox.policy.errors import BoxFailed, SandboxError
from pytest_nsbox.relay import Channel, ChannelClosed, Frame, Poller, report_from_data, warning_from_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pluggy import HookCaller

    from pytest_nsbox.boxes import Boxes
    from pytest_nsbox.placement import Placement
    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.warden.client import Box

ATTEMPT: Final = pytest.StashKey["Attempt"]()
INTERRUPT_GRACE: Final = 10.0  # seconds that a test has for its teardown after Ctrl-C


class Attempt:
    """One run of one item in one box, seen from pytest's process. A rerun is another attempt."""

    def __init__(self, item: pytest.Item, spec: Spec) -> None:
        self.item = item
        self.spec = spec
        self.phase = "setup"
        self.box: Box | None = None
        self.pid = 0
        self.child: Child | None = None  # set in the child only
        self.started = 0.0  # of the fork, time.perf_counter
        self.stopped = 0.0
        self.reports: dict[str, pytest.TestReport] = {}
        self.sections: list[tuple[str, str]] = []
        self.ended = False  # no process of the test is left to wait for
        self.timed_out = False
        self.died = False  # before its last frame
        self.stacks = ""  # of all threads, when it timed out
        self.paused = False  # a debugger is at work: no deadline
        self.channel: Channel | None = None
        self._poller: Poller | None = None
        self._pidfd = -1

    @property
    def forked(self) -> bool:
        return self.pid != 0 or self.child is not None

    def attach(self, pid: int, channel: Channel) -> None:
        """In pytest's process, right after the fork."""
        self.pid, self.channel = pid, channel
        self._pidfd = os.pidfd_open(pid)
        self._poller = Poller(channel, self._pidfd)

    @property
    def deadline(self) -> float | None:
        if self.spec.timeout is None or self.paused:
            return None
        return self.started + self.spec.timeout

    def next_frame(self, deadline: float | None) -> Frame | None:
        """The next frame; None when the process has ended and everything it sent was read. Raises TimeoutError."""
        assert self.channel is not None and self._poller is not None
        while (frame := self.channel.take()) is None:
            seconds = None if deadline is None else deadline - time.perf_counter()
            readable, exited = self._poller.wait(seconds)
            if readable:
                if not self.channel.fill(socket.MSG_DONTWAIT if exited else 0):
                    # End of file with the process alive: it closed the socket. Its end is still worth waiting for.
                    self._poller.forget_channel()
                continue
            if exited:
                return None
            raise TimeoutError
        return frame

    def signal(self, number: int) -> None:
        """Signal the test's own process; nothing happens if it has ended."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to the process group of the test."""
        try:
            os.killpg(self.pid, signal.SIGINT)
        except (ProcessLookupError, PermissionError):
            self.signal(signal.SIGINT)

    def reap(self) -> int:
        """Wait for the test's own process; its return code as `subprocess` gives it. Once only."""
        _, status = os.waitpid(self.pid, 0)
        self.close()
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        self.ended = True
        if self.channel is not None:
            self.channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class Lockstep:
    """Intercepts the run-test hooks of a session's items; acts on those that have a `Spec`."""

    def __init__(self, session: pytest.Session, boxes: Boxes, placement: Placement) -> None:
        self.config = session.config
        self.placement = placement
        self._boxes = boxes
        self._child: Child | None = None
        self._output_in_step = not internals.is_captured(self.config) or bool(self.config.getoption("usepdb", False))
        self._undo = internals.intercept(
            session,
            {
                "pytest_runtest_setup": self._setup,
                "pytest_runtest_call": self._call,
                "pytest_runtest_teardown": self._teardown,
                "pytest_runtest_makereport": self._makereport,
                "pytest_runtest_logreport": self._logreport,
                "pytest_exception_interact": self._exception_interact,
                "pytest_enter_pdb": self._enter_pdb,
                "pytest_leave_pdb": self._leave_pdb,
            },
        )

    def close(self) -> None:
        self._undo()

    # --- the guard around the whole protocol

    @contextlib.contextmanager
    def guard(self, item: pytest.Item) -> Iterator[None]:
        """Around the item's protocol: in a child, whatever comes out of it ends the process."""
        try:
            yield
        except BaseException as error:
            if self._child is not None:
                self._end_child(error)
            self._give_up(item)
            raise
        if self._child is not None:
            self._child.finish()

    def _end_child(self, error: BaseException) -> None:
        assert self._child is not None
        if isinstance(error, KeyboardInterrupt):
            self._child.interrupted()
        if isinstance(error, pytest.exit.Exception):
            self._child.exited(str(error.msg), error.returncode)
        self._child.crashed(error)

    def _give_up(self, item: pytest.Item) -> None:
        """The protocol of pytest's process was left by an exception: nothing of the test may stay behind."""
        attempt = item.stash.get(ATTEMPT, None)
        if attempt is None or attempt.box is None or attempt.ended:
            return
        attempt.box.kill()
        if attempt.pid:
            attempt.reap()
        attempt.box.release()

    # --- setup, and the fork in it

    def _setup(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        __tracebackhide__ = True
        item: pytest.Item = kwargs["item"]
        if self._child is not None:  # a plugin that runs the item again got here in the child: the parent's turn
            self._child.finish()
        spec = self._boxes.spec_of(item)
        if spec is None:
            return caller(**kwargs)
        attempt = item.stash[ATTEMPT] = Attempt(item, spec)
        ordinary = item.setup
        item.setup = partial(self._setup_in_box, attempt, ordinary)  # type: ignore[method-assign]
        try:
            result = internals.call_leavable(self.config, caller, kwargs)
        except Forked as forked:
            forked.undo()
            self._wait(attempt, "setup")
            return None
        finally:
            item.__dict__.pop("setup", None)
            if attempt.child is not None:
                attempt.child.due = "setup"
        return result

    def _setup_in_box(self, attempt: Attempt, ordinary: Callable[[], None]) -> None:
        """Stands in for the item's ``setup()``: outer fixtures here, the rest in the child."""
        __tracebackhide__ = True
        item = attempt.item
        try:
            self._set_up_outer_fixtures(item)
        except (Exception, pytest.skip.Exception, pytest.fail.Exception):
            # The item's own set-up meets the same failure, after what its teardown counts on (unittest's does).
            ordinary()
            raise
        attempt.box = self._boxes.acquire(item, attempt.spec)
        if self._fork(attempt):
            ordinary()
            return
        internals.forget_unraisable(self.config)
        internals.drop_item_in_parent(item)
        item._report_sections.clear()  # the child's reports hold them
        raise Forked(internals.leave_capture(self.config))

    def _set_up_outer_fixtures(self, item: pytest.Item) -> None:
        __tracebackhide__ = True
        placement = self.placement
        names = [name for name in internals.outer_fixture_names(item) if not placement.lives_in_box(name)]
        if not names:
            return
        placement.watching = True
        try:
            internals.set_up_outer_fixtures(item, names)
        finally:
            placement.watching = False
            placement.move(item, names)

    def _fork(self, attempt: Attempt) -> bool:
        """Fork into the box; True in the child."""
        box = attempt.box
        assert box is not None
        ours, theirs = socket.socketpair()
        child = Child(attempt.item, Channel(theirs), lockstep_output=self._output_in_step)
        random_state = random.getstate()
        _flush_terminal(self.config)
        attempt.started = time.perf_counter()
        try:
            pid = fork_into(box, lambda: self._enter(attempt, child, ours, random_state))
        except BaseException:
            ours.close()
            theirs.close()
            box.release()
            attempt.ended = True
            raise
        if pid == 0:
            return True
        theirs.close()
        attempt.attach(pid, Channel(ours))
        return False

    def _enter(self, attempt: Attempt, child: Child, ours: socket.socket, random_state: Any) -> None:
        """The child's first steps, still inside `os.fork`."""
        ours.close()
        self._child = attempt.child = child
        assert attempt.box is not None
        child.enter(partial(self._boxes.enter, attempt.box, attempt.item), random_state)

    # --- the other phases, and reports

    def _call(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        __tracebackhide__ = True
        attempt = self._attempt(kwargs["item"])
        if attempt is None:
            return caller(**kwargs)
        if attempt.child is not None:
            return self._phase_in_child(attempt.child, "call", caller, kwargs)
        self._wait(attempt, "call")
        return None

    def _teardown(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        __tracebackhide__ = True
        attempt = self._attempt(kwargs["item"])
        if attempt is None:
            return caller(**kwargs)
        if attempt.child is not None:
            return self._phase_in_child(attempt.child, "teardown", caller, kwargs)
        died: BaseException | None = None
        if not attempt.ended:
            try:
                self._wait(attempt, "teardown")
            except SandboxError as error:
                died = error
        if internals.ends_outer_nodes(attempt.item, kwargs["nextitem"]):
            internals.call_own(self.config, caller, kwargs)
        else:
            internals.forget_current_test()
        if died is not None:
            raise died
        return None

    def _phase_in_child(self, child: Child, phase: str, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        __tracebackhide__ = True
        try:
            return caller(**kwargs)
        finally:
            child.due = phase

    def _makereport(self, caller: HookCaller, kwargs: dict[str, Any]) -> pytest.TestReport:
        attempt, call = self._attempt(kwargs["item"]), kwargs["call"]
        if call.excinfo is not None:
            internals.drop_own_frames(call.excinfo)
        if attempt is None:
            return caller(**kwargs)  # type: ignore[no-any-return]
        if attempt.child is not None:
            return self._makereport_in_child(attempt.child, caller, kwargs)
        report = attempt.reports.pop(call.when, None)
        if report is None or call.excinfo is not None:
            report = self._makereport_in_parent(attempt, report, caller, kwargs)
        elif call.when == "teardown":
            internals.merge_teardown(report, attempt.item, call, None)
        if call.when == "teardown":
            self._boxes.ended(attempt, report)
        return report

    def _makereport_in_child(self, child: Child, caller: HookCaller, kwargs: dict[str, Any]) -> pytest.TestReport:
        report: pytest.TestReport = caller(**kwargs)
        if child.due is None:
            return report
        phase, call = child.due, kwargs["call"]
        child.report(report)
        # A failing teardown still owes `pytest_exception_interact`.
        if phase == "teardown" and not internals.check_interactive_exception(call, report):
            child.finish()
        return report

    def _makereport_in_parent(
        self, attempt: Attempt, childs: pytest.TestReport | None, caller: HookCaller, kwargs: dict[str, Any]
    ) -> pytest.TestReport:
        """The report of a phase in which the test died, its box failed, or an outer fixture's teardown did."""
        call = kwargs["call"]
        if childs is None and call.excinfo is not None:
            internals.set_report_sections(attempt.item, self._last_sections(attempt))
        report: pytest.TestReport = internals.call_own(self.config, caller, kwargs, firstresult=True)
        if call.excinfo is not None and isinstance(call.excinfo.value, SandboxError) and report.failed:
            report.longrepr = reporting.ending_repr(call.excinfo, {})
        if childs is not None:
            internals.merge_teardown(childs, attempt.item, call, report)
            return childs
        return report

    def _last_sections(self, attempt: Attempt) -> list[tuple[str, str]]:
        sections = list(attempt.sections)
        out, err = internals.read_captured(self.config)
        for name, text in (("stdout", out), ("stderr", err)):
            if text:
                sections.append((f"Captured {name} {attempt.phase}", text))
        return sections

    def _logreport(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        if self._child is None:
            return caller(**kwargs)
        self._child.log(kwargs["report"])
        return None

    def _exception_interact(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        child = self._child
        if child is None:
            return caller(**kwargs)
        try:
            return caller(**kwargs)
        finally:
            if kwargs["call"].when == "teardown":
                child.finish()

    def _enter_pdb(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        if self._child is not None:
            self._child.channel.send("pdb", entered=True)
        return caller(**kwargs)

    def _leave_pdb(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        if self._child is not None:
            self._child.channel.send("pdb", entered=False)
        return caller(**kwargs)

    def _attempt(self, item: pytest.Item) -> Attempt | None:
        attempt = item.stash.get(ATTEMPT, None)
        return attempt if attempt is not None and attempt.forked else None

    # --- waiting for the child

    def _wait(self, attempt: Attempt, phase: str) -> None:
        """Until the child's report of the phase is here (for teardown: until its process has said its last).

        Raises what ended the test otherwise: `SandboxError`, KeyboardInterrupt, `pytest.exit`.
        """
        __tracebackhide__ = True
        attempt.phase = phase
        if self._output_in_step and phase != "setup":
            self._say_go(attempt)
        while True:
            if phase != "teardown" and phase in attempt.reports:
                return
            try:
                frame = attempt.next_frame(attempt.deadline)
            except TimeoutError:
                self._time_out(attempt)
                frame = None
            except ChannelClosed as error:
                frame = {"t": "failed", "text": str(error)}
            except KeyboardInterrupt:
                self._interrupt(attempt)
                raise
            if frame is None:
                self._died(attempt)
            elif self._take(attempt, frame):
                return

    def _say_go(self, attempt: Attempt) -> None:
        _flush_terminal(self.config)
        assert attempt.channel is not None
        try:
            attempt.channel.send("go")
        except OSError:  # it died meanwhile: the next wait tells how
            pass

    def _take(self, attempt: Attempt, frame: Frame) -> bool:
        """Act on one frame; True when it was the last."""
        self._take_leavings(attempt, frame)
        kind = frame["t"]
        if kind == "report":
            report = report_from_data(self.config, frame["report"])
            assert report.when is not None
            attempt.reports[report.when] = report
            attempt.sections = list(report.sections)
            if self._output_in_step and report.when == "teardown":
                self._say_go(attempt)
        elif kind == "log":
            attempt.item.ihook.pytest_runtest_logreport(report=report_from_data(self.config, frame["report"]))
            if self._output_in_step:
                self._say_go(attempt)
        elif kind == "ask":
            self._answer(attempt, frame["what"])
        elif kind == "pdb":
            attempt.paused = frame["entered"]
        elif kind == "end":
            self._settle(attempt)
            return True
        else:
            self._settle(attempt)
            self._raise_ending(frame)
        return False

    def _raise_ending(self, frame: Frame) -> None:
        kind = frame["t"]
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "exit":
            raise pytest.exit.Exception(frame["message"], frame["returncode"])
        if kind == "internal":
            raise RuntimeError(f"INTERNALERROR in the test's process\n{frame['text']}")
        if kind == "failed":
            raise BoxFailed(frame["text"])
        raise BoxFailed(f"the test's process sent a frame of unknown kind {kind!r}")

    def _take_leavings(self, attempt: Attempt, frame: Frame) -> None:
        item = attempt.item
        for data in frame.get("warnings", ()):
            internals.replay_warning(warning_from_data(data))
        for name, value in frame.get("attributes", {}).items():
            setattr(item, name, value)
        if "random" in frame:
            _set_random_state(frame["random"])
        for name, value in frame.get("testsuite_properties", ()):
            internals.testsuite_properties(self.config).append((name, value))
        if "failed_subtests" in frame:
            table, key = internals.failed_subtests(item)
            table[key] = frame["failed_subtests"]
        if "stops" in frame:
            stop, fail = frame["stops"]
            item.session.shouldstop = stop or item.session.shouldstop
            item.session.shouldfail = fail or item.session.shouldfail
        if frame.get("coverage") is not None:
            self._boxes.coverage(frame["coverage"])

    def _answer(self, attempt: Attempt, what: str) -> None:
        assert attempt.channel is not None
        try:
            attempt.channel.send("reply", value=self._boxes.answer(attempt, what))
        except Exception as error:
            attempt.channel.send("reply", error=f"{type(error).__name__}: {error}")

    # --- ends

    def _settle(self, attempt: Attempt) -> None:
        """The last frame is here: end the box, then reap the child (the kernel wants this order)."""
        assert attempt.box is not None
        attempt.stopped = time.perf_counter()
        attempt.box.kill()
        attempt.reap()

    def _died(self, attempt: Attempt) -> None:
        """The test's process ended before its last frame."""
        assert attempt.box is not None
        attempt.stopped, attempt.died = time.perf_counter(), True
        status = attempt.reap()
        attempt.box.kill()
        raise reporting.placed(self._boxes.died(attempt, status), *reporting.place_of(attempt.item))

    def _time_out(self, attempt: Attempt) -> None:
        """Collect the stacks of the test's threads, then kill everything in the box."""
        assert attempt.box is not None
        attempt.timed_out = True
        attempt.stacks = self._boxes.stacks(attempt)
        attempt.box.kill()
        attempt.signal(signal.SIGKILL)

    def _interrupt(self, attempt: Attempt) -> None:
        """Ctrl-C: the test's own teardown runs; a second Ctrl-C or the end of the grace kills the box."""
        attempt.interrupt()
        deadline = time.perf_counter() + INTERRUPT_GRACE
        try:
            while True:
                frame = attempt.next_frame(deadline)
                if frame is None or frame["t"] in ("interrupt", "end", "exit", "failed", "internal"):
                    break
        except (TimeoutError, ChannelClosed, KeyboardInterrupt):
            pass
        self._settle(attempt)


def _flush_terminal(config: pytest.Config) -> None:
    """Empty the buffers that a fork would double."""
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    streams: Iterable[Any] = (sys.stdout, sys.stderr, getattr(getattr(terminal, "_tw", None), "_file", None))
    for stream in streams:
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):  # closed by a test that ran without a box
                pass


def _set_random_state(state: Any) -> None:
    """Carry on where the test left the generator, as one process would."""
    try:
        version, numbers, gauss = state
        random.setstate((version, tuple(numbers), gauss))
    except (TypeError, ValueError, OverflowError):  # the test's bytes: they may be anything
        pass
