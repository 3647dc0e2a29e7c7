"""Groups in lockstep: tests that take turns in one box and one child, each still in step with pytest's process.

The child is forked in the first test's set-up and leaves that test's protocol when it is over (`internals.Turn`). Then
pytest's process names each next one, when its own protocol gets to the set-up::

    pytest                                       child
    teardown of a test, with the one to follow -->  tears down what that one does not need
                                           <-- done what the test left
    usage so far; reports are logged
    protocol of the next test, its setup  -- next --> its whole setup, every hook of it
                                      <-- report
    call, teardown                        -- go -->  ...

A test after which none follows ends the child, as a test with a box of its own does. A death ends the box; the rest of
the group begins a new one by forking again.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from pytest_nsbox import internals, output, succession, timeouts
from pytest_nsbox.attempt import ATTEMPT, Attempt
from pytest_nsbox.child import plain_attributes
from pytest_nsbox.groups import Group
from pytest_nsbox.internals import TEST_OUTCOME, Turn
from pytest_nsbox.policy.errors import BoxFailed, SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from pytest_nsbox.boxes import Boxes
    from pytest_nsbox.child import Child
    from pytest_nsbox.follow import Follower

    SetUp = Callable[[pytest.Item, str], None]


class Turns:
    """The group of a session whose box is open, if there is one. Made only where a marker asks for groups."""

    def __init__(self, config: pytest.Config, boxes: Boxes, follower: Follower) -> None:
        self._config = config
        self._boxes = boxes
        self._follower = follower
        self._group: Group | None = None
        boxes.has_a_box = self._has_a_box

    def _has_a_box(self, item: pytest.Item) -> bool:
        return self._group is not None and self._group.holds(item)

    # --- in pytest's process

    def begin(self, item: pytest.Item, set_up: SetUp) -> Group | None:
        """The group that begins with ``item``; ``set_up`` is called for each test, with the scope of its box.

        What a fork leaves out cannot be had later, so outer fixtures of all its tests are set up. One that fails does
        so again, from pytest's memory of it, in the test that requests it.
        """
        scope = self._boxes.scope_of(item)
        group = Group.of(item, scope) if scope != "function" else None
        if group is None:
            return None
        for other in group.members.values():
            names = () if other is item else tuple(internals.outer_fixture_names(other, scope))
            if not succession.not_set_up(other, names) or succession.is_skipped(other):
                continue
            try:
                with succession.active(other):
                    set_up(other, scope)
            except pytest.exit.Exception:
                raise
            except TEST_OUTCOME:
                continue
            finally:
                succession.renew_request(other)
        return group

    def began(self, group: Group, attempt: Attempt) -> None:
        """The child of a group was forked."""
        self._group, group.attempt, attempt.grouped = group, attempt, True

    def go_on(self, item: pytest.Item) -> Attempt | None:
        """Begin a test in the group's box, if that is open and the test's; any other test ends the group."""
        group = self._group
        if group is None:
            return None
        if not group.holds(item) or (group.attempt is not None and not group.attempt.lapped):
            self.end()
            return None
        spec, previous = self._boxes.spec_of(item), group.attempt
        assert spec is not None
        assert previous is not None
        attempt = group.attempt = item.stash[ATTEMPT] = Attempt(item, spec)
        attempt.follow(previous)
        attempt.keeps = previous.keeps
        item._report_sections.clear()  # the child's reports hold them
        output.pause_faulthandler_timer(self._config)
        timeout = timeouts.told(item)
        attempt.backstop = timeouts.leave_to_child(item)
        nextitem = self._boxes.next_item
        self._follower.send(
            attempt,
            "next",
            item=id(item),
            nextitem=0 if nextitem is None else id(nextitem),
            keywords=list(attempt.keywords),
            attributes=dict(plain_attributes(item)),
            timeout=timeout,
            terminal=output.terminal_state(self._config),
        )
        self._boxes.make_next()
        return attempt

    def name_following(self, attempt: Attempt, nextitem: pytest.Item | None) -> None:
        """Before the tear-down: which test goes on in the box, for only what that one does not need is torn down."""
        session = attempt.item.session
        stops = session.shouldfail or session.shouldstop
        group = self._group
        if group is not None and group.attempt is attempt and not stops and group.holds(nextitem):
            attempt.following = nextitem

    def end(self) -> None:
        """Let the child tear down what its group still has, and end it."""
        group, self._group = self._group, None
        attempt = group.attempt if group is not None else None
        if attempt is None or attempt.ended:
            return
        if not attempt.lapped:  # its protocol was left in the middle
            self._follower.give_up(attempt.item)
            return
        with contextlib.suppress(BoxFailed):
            self._boxes.finish_lap(attempt)
        attempt.lapped, attempt.backstop, attempt.started = False, None, time.perf_counter()
        self._follower.send(attempt, "finish")
        with contextlib.suppress(SandboxError):  # no test is left that it could be told of
            self._follower.wait(attempt, "teardown")
        with contextlib.suppress(BoxFailed):
            self._boxes.forget(attempt)

    # --- in the child

    def take_turns(self, child: Child, fail: Callable[[BaseException], None]) -> NoReturn:
        """Run the tests that pytest's process names, until it names none. ``fail`` ends the process."""
        while True:
            try:
                self._take_turn(child)
                child.finish()  # the protocol came to its end without a tear-down
            except Turn:
                continue
            except BaseException as error:  # noqa: BLE001 - nothing may come out of a fork
                fail(error)

    def _take_turn(self, child: Child) -> None:
        frame = child.channel.receive()
        assert child.group is not None
        if frame["t"] == "finish":
            child.tear_down_rest()
            child.finish()
        items = child.group.items
        item, nextitem = items[frame["item"]], items.get(frame["nextitem"])
        if item is child.item:
            succession.forget_failed_fixtures(item)
        succession.renew_request(item)
        spec, before = self._boxes.spec_of(item), child.item.stash[ATTEMPT]
        assert spec is not None
        attempt = item.stash[ATTEMPT] = Attempt(item, spec)
        attempt.box, attempt.child = before.box, child
        child.begin(item, frame)
        timeouts.hear(item, frame["timeout"])

        def begin() -> None:
            child.begin_inside()
            timeouts.take_over(item)

        succession.run_protocol(item, nextitem, begin)
