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
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_nsbox import foresight, garbage, internals, output, reporting, timeouts
from pytest_nsbox.ahead import Ahead
from pytest_nsbox.attempt import ATTEMPT, Attempt
from pytest_nsbox.child import Child
from pytest_nsbox.follow import Follower, flush_terminal
from pytest_nsbox.internals import Forked, Turn
from pytest_nsbox.launch import Launcher
from pytest_nsbox.nursery import Nursery
from pytest_nsbox.pages import Pages
from pytest_nsbox.policy.errors import BoxFailed, SandboxError
from pytest_nsbox.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pluggy import HookCaller

    from pytest_nsbox.boxes import Boxes
    from pytest_nsbox.placement import Placement
    from pytest_nsbox.turns import Turns
    from pytest_nsbox.zygote import Zygote


class Lockstep:
    """Intercepts the run-test hooks of a session's items; acts on those that have a `Spec`."""

    def __init__(self, session: pytest.Session, boxes: Boxes, placement: Placement) -> None:
        self._session = session
        self.config = session.config
        self.placement = placement
        self._boxes = boxes
        self._child: Child | None = None
        self.ends_by_itself = False  # this process, with its test: it needs no `guard` for that
        self._show_again: Callable[[], None] = lambda: None
        self._terminal = Terminal()
        pages = Pages()
        self._follower = Follower(session.config, boxes, self._terminal, pages)
        self._follower.undone = placement.undone
        self.launcher = Launcher(session.config, boxes, self._follower, self._terminal, pages, self._become)
        self.nursery = Nursery(session.items, self.launcher, self._follower, self._fork_zygote, self._fork_ahead)
        self._ahead = Ahead(session, boxes, placement, self._follower, self.nursery)
        self._turns = self._make_turns(session)
        self._undo = internals.intercept(
            session,
            {
                "pytest_runtest_protocol": self._protocol,
                "pytest_runtest_logstart": self._logstart,
                "pytest_runtest_setup": self._setup,
                "pytest_runtest_call": self._call,
                "pytest_runtest_teardown": self._teardown,
                "pytest_runtest_makereport": self._makereport,
                "pytest_runtest_logreport": self._logreport,
                "pytest_exception_interact": self._exception_interact,
            },
        )

    def _make_turns(self, session: pytest.Session) -> Turns | None:
        if all(self._boxes.scope_of(item) == "function" for item in session.items):
            return None
        from pytest_nsbox.turns import Turns

        return Turns(session.config, self._boxes, self._follower)

    def close(self) -> None:
        try:
            if self._turns is not None:
                self._turns.end()
        finally:
            self._close()

    def _close(self) -> None:
        self._undo()
        self._ahead.close()
        self.launcher.close()
        self._follower.reap_dying(wait=True)
        self._terminal.close()
        garbage.tell(self.config, self._follower.unraisable)

    # --- the whole protocol

    def _protocol(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        __tracebackhide__ = True
        if self._child is not None:
            return caller(**kwargs)
        if self._boxes.spec_of(kwargs["item"]) is not None:
            self.launcher.tests_left -= 1
            caller = foresight.without_fork(caller, self.config)
        if self._boxes.scope_of(kwargs["item"]) != "function":
            self.nursery.disturb()
            return self._protocol_of_group(caller, kwargs)
        return self._ahead.run(caller, kwargs["item"], kwargs["nextitem"])

    def _fork_ahead(self, attempt: Attempt, running: Attempt | None, caller: HookCaller) -> None:
        """Fork a process for a test that is not due yet; in the child this does not return."""
        if self.launcher.fork(attempt, running=running):
            self._run_when_due(attempt, caller)

    def _fork_zygote(self, known: Iterable[Attempt], caller: HookCaller) -> Zygote:
        """Fork a zygote; in what that forks this does not return."""
        found = self.launcher.fork_zygote(known, self._session.items)
        if isinstance(found, Attempt):
            self._run_when_due(found, caller)
        return found

    def _run_when_due(self, attempt: Attempt, caller: HookCaller) -> NoReturn:
        """In the process of a test that was forked ahead: all of its life."""
        self.ends_by_itself = True
        child, item = attempt.child, attempt.item
        assert child is not None
        try:
            nextitem = child.wait_for_turn()
            item.stash[ATTEMPT] = attempt
            timeouts.go_alone(self.config, child.tell_limit)
            caller(item=item, nextitem=nextitem)
        except BaseException as error:  # noqa: BLE001 - whatever it is, pytest's process is to go on with it
            self._end_child(error)
        child.finish()

    def _become(self, child: Child) -> None:
        self._child = child

    def _logstart(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        if self._child is not None:
            return None
        return self._ahead.log_start(caller, kwargs)

    @contextlib.contextmanager
    def guard(self, item: pytest.Item) -> Iterator[None]:
        """Around the item's protocol: in a child, whatever comes out of it ends the process."""
        try:
            yield
        except Turn:
            raise
        except BaseException as error:
            if self._child is not None:
                self._end_child(error)
            self._follower.give_up(item)
            raise
        if self._child is not None:
            self._end_test(self._child)
        if ATTEMPT in item.stash:
            self._follower.ran.append(item)
            del item.stash[ATTEMPT]  # items live as long as the session

    def _end_child(self, error: BaseException) -> None:
        assert self._child is not None
        if isinstance(error, KeyboardInterrupt):
            self._child.interrupted(error)
        if isinstance(error, pytest.exit.Exception):
            self._child.exited(str(error.msg), error.returncode)
        self._child.crashed(error)

    def _end_test(self, child: Child) -> NoReturn:
        """In the child: this test is over."""
        if child.following is None:
            child.finish()
        timeouts.give_back(child.item)
        child.hand_over()
        raise Turn

    # --- setup, and the fork in it

    def _setup(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        __tracebackhide__ = True
        item: pytest.Item = kwargs["item"]
        if self._child is not None:
            if self._child.fresh:
                self._child.fresh = False
                if not self._child.started:
                    self._child.start()
                return self._phase_in_child(self._child, "setup", caller, kwargs)
            self._end_test(self._child)  # a plugin that runs the item again got here in the child: the parent's turn
        if self._turns is not None and (attempt := self._turns.go_on(item)) is not None:
            self._await_setup(attempt)
            return None
        spec = self._boxes.spec_of(item)
        if spec is None:
            return caller(**kwargs)
        attempt = item.stash.get(ATTEMPT, None)
        if attempt is None or not attempt.adopted:
            attempt = item.stash[ATTEMPT] = Attempt(item, spec)
            attempt.keeps = self._boxes.kept is not None
        flush_terminal(self.config)  # before the capture begins: it would take what is flushed at the fork
        ordinary = item.setup
        item.setup = partial(self._setup_in_box, attempt, ordinary)  # type: ignore[method-assign]
        try:
            return internals.call_leavable(self.config, caller, kwargs)
        except Forked as forked:
            forked.undo()
            item._report_sections.clear()  # the child's reports hold what was printed and logged up to here
        finally:
            item.__dict__.pop("setup", None)
            if attempt.child is not None:
                attempt.child.due = "setup"
        self._await_setup(attempt)
        return None

    def _await_setup(self, attempt: Attempt) -> None:
        __tracebackhide__ = True
        self._follower.wait(attempt, "setup")
        self._show_again = output.hide_setup_show(self.config)
        self._follower.reraise(attempt)

    def _setup_in_box(self, attempt: Attempt, ordinary: Callable[[], None]) -> None:
        """Stands in for the item's ``setup()``: outer fixtures here, the rest in the child."""
        __tracebackhide__ = True
        item = attempt.item
        if attempt.adopted:
            attempt.adopted = False
            timeouts.rest(item)
            self._leave_setup(item)
        try:
            self._set_up_outer_fixtures(item, attempt.spec.scope)
            group = self._turns.begin(item, self._set_up_outer_fixtures) if self._turns is not None else None
        except (Exception, pytest.skip.Exception, pytest.fail.Exception) as error:
            traceback = error.__traceback__
            # The item's own set-up meets the same failure, after what its teardown counts on (unittest's does).
            with contextlib.suppress(Exception, pytest.skip.Exception, pytest.fail.Exception):
                ordinary()
            error.__traceback__ = traceback
            raise
        timeouts.rest(item)
        try:
            attempt.box = self._boxes.acquire(attempt.spec)
        except SandboxError:
            internals.drop_item_in_parent(item)  # never set up, so not to be torn down either
            raise
        if self.launcher.fork(attempt, group):
            assert attempt.child is not None
            attempt.child.start()
            timeouts.take_over(item)
            ordinary()
            return
        if group is not None and self._turns is not None:
            self._turns.began(group, attempt)
        self._leave_setup(item)

    def _leave_setup(self, item: pytest.Item) -> NoReturn:
        internals.forget_unraisable(self.config)
        internals.drop_item_in_parent(item)
        raise Forked(output.leave_capture(self.config))

    def _set_up_outer_fixtures(self, item: pytest.Item, scope: str) -> None:
        __tracebackhide__ = True
        placement = self.placement
        names = placement.on_host(item, list(internals.outer_fixture_names(item, scope)))
        if not names:
            return
        placement.watching = True
        try:
            internals.set_up_outer_fixtures(item, names)
        finally:
            placement.watching = False
            placement.move(item, names)

    # --- the other phases, and reports

    def _call(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        __tracebackhide__ = True
        attempt = self._attempt(kwargs["item"])
        if attempt is None:
            return caller(**kwargs)
        if attempt.child is not None:
            return self._phase_in_child(attempt.child, "call", caller, kwargs)
        self._show_again()
        self._follower.wait(attempt, "call")
        self._follower.reraise(attempt)
        return None

    def _teardown(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        __tracebackhide__ = True
        attempt = self._attempt(kwargs["item"])
        if attempt is None:
            return caller(**kwargs)
        if attempt.child is not None:
            return self._phase_in_child(attempt.child, "teardown", caller, kwargs)
        self._show_again()
        died: BaseException | None = None
        if not attempt.ended:
            if attempt.grouped and self._turns is not None:
                self._turns.name_following(attempt, kwargs["nextitem"])
            try:
                self._follower.wait(attempt, "teardown")
            except SandboxError as error:
                died = error
        if internals.ends_outer_nodes(attempt.item, kwargs["nextitem"]):
            self._prepare_late_hooks(attempt)
            internals.call_own(self.config, caller, kwargs)
        else:
            internals.forget_current_test()
        if died is not None:
            raise died
        self._follower.reraise(attempt)
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
            if isinstance(call.excinfo.value, internals.ProtocolFailed):
                raise call.excinfo.value  # not the test's failure: it ends the run, as without a box
            internals.drop_own_frames(call.excinfo)
        if attempt is None:
            return self._makereport_without_box(caller, kwargs)
        if attempt.child is not None:
            return self._makereport_in_child(attempt.child, caller, kwargs)
        report = attempt.reports.pop(call.when, None)
        if report is None or (call.excinfo is not None and not attempt.told(call.excinfo)):
            report = self._makereport_in_parent(attempt, report, caller, kwargs)
        elif call.when == "teardown":
            internals.merge_teardown(report, attempt.item, call, None)
        if call.when == "teardown":
            self._boxes.ended(attempt, report)
            internals.set_report_sections(attempt.item, attempt.sections)  # a rerun's reports begin with them
        return report

    def _makereport_without_box(self, caller: HookCaller, kwargs: dict[str, Any]) -> pytest.TestReport:
        report: pytest.TestReport = caller(**kwargs)
        excinfo = kwargs["call"].excinfo
        if excinfo is not None and isinstance(excinfo.value, BoxFailed) and report.failed:
            report.longrepr = reporting.ending_repr(excinfo, {})  # why there was no box, not how we came to know
        return report

    def _makereport_in_child(self, child: Child, caller: HookCaller, kwargs: dict[str, Any]) -> pytest.TestReport:
        report: pytest.TestReport = caller(**kwargs)
        if child.due is None:
            return report
        phase, call = child.due, kwargs["call"]
        child.report(report, call.excinfo)
        # A failing teardown still owes `pytest_exception_interact`.
        if phase == "teardown" and not internals.check_interactive_exception(call, report):
            self._end_test(child)
        return report

    def _makereport_in_parent(
        self, attempt: Attempt, childs: pytest.TestReport | None, caller: HookCaller, kwargs: dict[str, Any]
    ) -> pytest.TestReport:
        """The report of a phase in which the test died, its box failed, or an outer fixture's teardown did."""
        call = kwargs["call"]
        self._prepare_late_hooks(attempt)
        if childs is None and call.excinfo is not None:
            internals.set_report_sections(attempt.item, self._last_sections(attempt))
        if childs is None and attempt.died:
            # Forked ahead, it was in this phase already when that began here.
            seconds = attempt.stopped - attempt.started - attempt.reported
            if seconds > call.duration:
                call.start, call.duration = call.stop - seconds, seconds
        report: pytest.TestReport = internals.call_own(self.config, caller, kwargs, firstresult=True)
        if call.excinfo is not None and isinstance(call.excinfo.value, SandboxError) and report.failed:
            report.longrepr = reporting.ending_repr(call.excinfo, {})
        if childs is not None:
            internals.merge_teardown(childs, attempt.item, call, report)
            return childs
        return report

    def _last_sections(self, attempt: Attempt) -> list[tuple[str, str]]:
        sections = list(attempt.sections)
        out, err = output.read_captured(self.config)
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
            attempt = kwargs["node"].stash.get(ATTEMPT, None)
            if attempt is not None and attempt.told(kwargs["call"].excinfo):
                return None  # the test's process has had this hook called
            return caller(**kwargs)
        try:
            return caller(**kwargs)
        finally:
            if kwargs["call"].when == "teardown":
                self._end_test(child)

    def debugging(self, *, entered: bool) -> None:
        """A debugger of pytest's starts or ends in this process: deadlines rest meanwhile, and it gets the terminal."""
        if self._child is not None:
            self._child.channel.send("pdb", entered=entered)
            if entered:
                self._terminal.take()

    # --- groups

    def _protocol_of_group(self, caller: HookCaller, kwargs: dict[str, Any]) -> Any:
        """Around an item's protocol, outside all wrappers: the child of a group leaves them, and goes on here."""
        with contextlib.suppress(Turn):
            return internals.call_leavable(self.config, caller, kwargs, firstresult=True)
        assert self._turns is not None
        assert self._child is not None
        return self._turns.take_turns(self._child, self._end_child)

    def _prepare_late_hooks(self, attempt: Attempt) -> None:
        if attempt.grouped:
            from pytest_nsbox import succession

            succession.prepare_late_hooks(attempt.item)

    def _attempt(self, item: pytest.Item) -> Attempt | None:
        attempt = item.stash.get(ATTEMPT, None)
        return attempt if attempt is not None and attempt.forked else None
