"""Tests forked ahead: while one test runs, the process of the next one enters its box and waits for its turn.

Only where nobody could tell. A process forked ahead has not seen what pytest's own does between two tests, so that may
be no more than log the reports of a test that passed, to reporters that only listen. `Ahead._may_be_ahead` holds the
conditions before the fork, `_Plain` those after it; a test that is anything else goes the ordinary way through
`protocol`, with the process that it has, and what was forked ahead of its time is thrown away.

The process waits outside of every test's protocol and goes through all of its own; pytest's process does nothing for
the test but log its reports, and that while the next test runs already.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from pytest_nsbox import foresight, internals, timeouts
from pytest_nsbox.attempt import ATTEMPT, Attempt
from pytest_nsbox.policy.errors import BoxFailed, SandboxError
from pytest_nsbox.relay import ChannelClosedError, Frame, leaves_nothing, phase_of
from pytest_nsbox.warned import warning_from_data

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pluggy import HookCaller, HookImpl

    from pytest_nsbox.boxes import Boxes
    from pytest_nsbox.follow import Follower
    from pytest_nsbox.nursery import Nursery
    from pytest_nsbox.placement import Placement

# Whoever implements one of these is told of every test in pytest's process, and may keep what the next test reads,
# unless he only listens.
_TOLD: Final = (
    "pytest_runtest_protocol",
    "pytest_runtest_logstart",
    "pytest_runtest_logreport",
    "pytest_runtest_logfinish",
    "pytest_runtest_setup",
    "pytest_warning_recorded",
)
_XDIST: Final = ("xdist.", "__channelexec__")  # the latter in workers, which are sent its text
# Tests that may have ended and are not logged yet. The user sees no difference, and to log several at once is cheaper:
# what that writes to has not to be copied for each child.
MOST_UNLOGGED: Final = 8
_PASSED: Final = (["setup", "call", "teardown"], ["setup", "teardown"])  # the latter skips in its setup


class _Plain(NamedTuple):
    """All that a test told: it passed, or skipped, and left nothing that the next test could see."""

    reports: list[Frame]
    made: list[pytest.TestReport | None]  # of those frames whose reports pytest may fail to make
    end: Frame


class Ahead:
    """At most one test of the session, forked ahead."""

    def __init__(
        self,
        session: pytest.Session,
        boxes: Boxes,
        placement: Placement,
        follower: Follower,
        nursery: Nursery,
    ) -> None:
        self._session = session
        self._boxes = boxes
        self._placement = placement
        self._follower = follower
        self._nursery = nursery
        self._parked: Attempt | None = None
        self._unlogged: list[tuple[Attempt, _Plain]] = []  # ended, while the next one runs already
        self._started: pytest.Item | None = None  # whose start was logged, and nothing else yet
        self._told: pytest.Item | None = None  # that one, if its ordinary protocol is still to come
        # pytest's own loop runs the items in their order; xdist's loop hears of its next item from elsewhere
        self._in_order = not foresight.strangers(session.config.hook, ["pytest_runtestloop"])
        self._listeners = foresight.Listeners(session.config)
        self._place = 0

    def run(self, caller: HookCaller, item: pytest.Item, nextitem: pytest.Item | None) -> Any:
        """The item's ``pytest_runtest_protocol``, in pytest's process."""
        __tracebackhide__ = True
        attempt, self._parked = self._parked, None
        if attempt is not None and (attempt.item is not item or not self._nursery.has_forked(attempt)):
            self._throw_away(attempt)  # somebody changed the order, or there was no process to be had
            attempt = None
        if attempt is not None:
            return self._run_parked(attempt, caller, nextitem)
        self._log_rest()
        self._nursery.disturb()
        self._follower.all_plain = True
        done = caller(item=item, nextitem=nextitem)
        if self._follower.all_plain:  # else the next test is not likely to be either
            self._park(nextitem, None, caller)
        return done

    def log_start(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        """The hook ``pytest_runtest_logstart``, once for each test."""
        told, self._told = self._told, None
        return caller(**kwargs) if told is None else None

    def close(self) -> None:
        """Nothing is run any more."""
        self._unpark()
        self._nursery.close()
        self._log_rest()

    def _unpark(self) -> None:
        attempt, self._parked = self._parked, None
        if attempt is not None:
            self._throw_away(attempt)

    def _run_parked(self, attempt: Attempt, caller: HookCaller, nextitem: pytest.Item | None) -> Any:
        __tracebackhide__ = True
        item = attempt.item
        try:
            foresight.set_up_collectors(item)
            if not attempt.begun:
                self._admit(attempt)
                self._begin(attempt, nextitem)
            self._boxes.expect(self._after(nextitem) or nextitem)
            self._park(nextitem, attempt, caller)
            if len(self._unlogged) >= MOST_UNLOGGED:
                self._catch_up(item)
            plain = self._collect(attempt) if foresight.ends_quietly(item, nextitem) else None
            if plain is None:
                self._catch_up(item)
        except KeyboardInterrupt:
            self._catch_up(item)
            self.close()
            raise self._follower.interrupt(attempt) from None
        except BaseException:
            self.close()
            self._follower.abandon(attempt)
            raise
        if plain is None:
            self._unpark()
            self._nursery.disturb()
            attempt.adopted, self._told, self._started = True, item, None
            item.stash[ATTEMPT] = attempt
            return caller(item=item, nextitem=nextitem)
        self._end(attempt, plain, nextitem)
        return True

    def _end(self, attempt: Attempt, plain: _Plain, nextitem: pytest.Item | None) -> None:
        """End a test that told its last, and have the next one begin; what it told is logged later."""
        try:
            self._follower.settle(attempt)
        except BoxFailed:  # the warden is gone, and knows no usage; the test has passed all the same
            self._follower.forget(attempt)
        self._follower.take_end(plain.end)
        foresight.tear_down_for(self._session, nextitem)
        self._unlogged.append((attempt, plain))
        self._follower.ran.append(attempt.item)
        self._nursery.note_quiet()
        if attempt.is_heard_of:
            self._log_rest()
        parked, session = self._parked, self._session
        goes_on = parked is not None and self._in_order and not (session.shouldstop or session.shouldfail)
        if parked is not None and not self._nursery.has_forked(parked):
            self._unpark()
        elif parked is not None and goes_on and self._admit(parked, wait=False):
            self._begin(parked, self._after(parked.item))
            return
        self._log_rest()

    def _meanwhile(self, item: pytest.Item) -> Callable[[], None] | None:
        """What is left to be done while this test runs."""
        return None if self._started is item else partial(self._catch_up, item)

    def _catch_up(self, item: pytest.Item) -> None:
        """Log all that has ended, and that this test runs."""
        self._log_rest()
        self._log_start(item)

    def _log_start(self, item: pytest.Item) -> None:
        if self._started is not item:
            self._started = item
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)

    def _log_rest(self) -> None:
        """Log the reports of tests that have ended; their usage was on the way meanwhile."""
        while self._unlogged:
            self._log(*self._unlogged.pop(0))

    def _log(self, attempt: Attempt, plain: _Plain) -> None:
        item = attempt.item
        self._log_start(item)
        hook = item.ihook
        for frame, made in zip(plain.reports, plain.made, strict=True):
            report = made or self._follower.read_report(attempt, frame)
            if report.when == "teardown":
                self._boxes.ended(attempt, report)
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        self._started = None
        for frame in (*plain.reports, plain.end):
            self._follower.take_attributes(item, frame)
            for data in frame.get("warnings", ()):
                foresight.record_warning(item, warning_from_data(data))

    def _admit(self, attempt: Attempt, *, wait: bool = True) -> bool:
        assert attempt.box is not None
        return self._boxes.admit(attempt.box, wait=wait)

    def _begin(self, attempt: Attempt, nextitem: pytest.Item | None) -> None:
        """Tell the process that its turn has come."""
        state = random.getstate()
        following = self._number(nextitem) if nextitem is not None else None
        attempt.begin(following, None if state == attempt.random_state else state)

    def _number(self, item: pytest.Item) -> int:
        """Which of the session's items it is."""
        items = self._session.items
        for place in (self._place, self._place + 1):
            if place < len(items) and items[place] is item:
                self._place = place
                return place
        self._place = items.index(item)
        return self._place

    def _after(self, item: pytest.Item | None) -> pytest.Item | None:
        """The item that runs after another one, where that is known."""
        if item is None or not self._in_order:
            return None
        place = self._number(item) + 1
        return self._session.items[place] if place < len(self._session.items) else None

    def _collect(self, attempt: Attempt) -> _Plain | None:
        """What the test told, if it is no more than what `_Plain` says; else it can be read once more."""
        frames: list[Frame] = []
        try:
            while (frame := attempt.next_frame(attempt.deadline, self._meanwhile(attempt.item))) is not None:
                if frame["t"] == "limit":
                    timeouts.guard(attempt, frame)
                    continue
                frames.append(frame)
                if not leaves_nothing(frame):
                    break
                if frame["t"] == "end":
                    reports = frames[:-1]
                    if [phase_of(report) for report in reports] in _PASSED:
                        return _Plain(reports, [self._make(attempt, report) for report in reports], frame)
                    break
        except (TimeoutError, ChannelClosedError):  # the ordinary way meets it again
            pass
        attempt.unread(frames)
        return None

    def _make(self, attempt: Attempt, frame: Frame) -> pytest.TestReport | None:
        """The report of a frame, or None where there is time for that later."""
        if frame["t"] == "passed":
            return None
        try:
            return self._follower.read_report(attempt, frame)
        except ChannelClosedError as error:
            frame.clear()  # what is left of it
            frame.update(t="failed", text=str(error))
            raise

    def _park(self, item: pytest.Item | None, running: Attempt | None, caller: HookCaller) -> None:
        if item is None:
            return
        listeners = [impl.plugin for impl in _strangers(item)]
        if not self._may_be_ahead(item, listeners):
            return
        spec = self._boxes.spec_of(item)
        assert spec is not None
        attempt = Attempt(item, spec)
        attempt.begun, attempt.is_heard_of = False, bool(listeners)
        attempt.keeps = self._boxes.kept is not None
        try:
            attempt.box = self._boxes.acquire_ahead(spec, running=running is not None)
            self._parked = attempt
            self._nursery.fork(attempt, self._number(item), running, caller)
            self._boxes.make_next(always=True)
        except (SandboxError, OSError):  # no box or no process: the ordinary way meets it again, and tells
            self._parked = None

    def _throw_away(self, attempt: Attempt) -> None:
        assert attempt.box is not None
        self._nursery.has_forked(attempt)  # else its process might come yet
        attempt.box.kill()
        self._follower.forget(attempt)
        attempt.box.drop()

    # --- who may be forked ahead

    def _may_be_ahead(self, item: pytest.Item, listeners: Sequence[object]) -> bool:
        """Say if nothing but the item itself is left to be set up, and if nobody in pytest's process waits for it.

        listeners  plugins that are told of it
        """
        spec = self._boxes.spec_of(item)
        return (
            spec is not None
            and spec.scope == "function"
            and isinstance(item, (pytest.Function, pytest.DoctestItem))
            and not self._follower.output_in_step
            and self._follower.shell is None
            and foresight.is_surely_not_skipped(item)
            and foresight.collectors_are_ready(item)
            and all(map(self._listeners.listens_only, listeners))
            and foresight.fixtures_are_ready(
                item, self._placement.on_host(item, list(internals.outer_fixture_names(item)))
            )
        )


def _strangers(item: pytest.Item) -> list[HookImpl]:
    return foresight.strangers(item.ihook, _TOLD, *_XDIST, *foresight.alike_in_child(item))
