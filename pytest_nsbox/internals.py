"""pytest's and pluggy's private machinery, in this one module: what `protocol` needs of it, and nothing else.

Everything here is held by tests over the supported pytest versions; a new pytest that moves one of these parts
breaks this module and no other.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import pytest
from _pytest._io import TerminalWriter
from _pytest.fixtures import FixtureDef
from _pytest.outcomes import TEST_OUTCOME
from _pytest.runner import SetupState, check_interactive_exception

from pytest_nsbox.kernel.libc import keep_for_ever
from pytest_nsbox.real import os

if TYPE_CHECKING:
    from pathlib import Path

    from pluggy import HookCaller, HookImpl

    Action = Callable[[HookCaller, dict[str, Any]], Any]

__all__ = ["TEST_OUTCOME", "check_interactive_exception"]


class Forked(BaseException):
    """Leaves the parent's half of ``pytest_runtest_setup`` once the test runs in its box.

    A BaseException that is no test outcome: SetupState lets it pass and keeps the item on its stack. ``undo`` ends
    what was arranged for the wrappers that it leaves.
    """

    def __init__(self, undo: Callable[[], None]) -> None:
        self.undo = undo


class Turn(Forked):
    """Leaves the protocol of a test that is over, in a child that goes on with another one."""

    def __init__(self) -> None:
        super().__init__(lambda: None)


class ProtocolFailed(Exception):  # noqa: N818 - pytest calls it an internal error, and shows it as one
    """Something besides a test raised in the test's process, most likely a plugin's hook; its text tells."""


# --- hooks -----------------------------------------------------------------------------------------------------


class _Intercepted:
    """One hook caller that runs an action of ours; in all other respects the caller itself."""

    def __init__(self, real: HookCaller, action: Action) -> None:
        self._real = real
        self._action = action

    def __call__(self, **kwargs: Any) -> Any:
        __tracebackhide__ = True  # a test's traceback passes through here
        return self._action(self._real, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _StandIn:
    """A hook relay (``config.hook`` or the one of a directory) with some of its callers intercepted."""

    def __init__(self, real: Any, actions: dict[str, Action]) -> None:
        self._nsbox_real = real
        self._nsbox_actions = actions

    def __getattr__(self, name: str) -> Any:
        caller = getattr(self._nsbox_real, name)
        action = self._nsbox_actions.get(name)
        if action is not None:
            caller = _Intercepted(caller, action)
        # Found once, kept: HookRelay attributes do not change after they are made.
        self.__dict__[name] = caller
        return caller


def intercept(session: pytest.Session, actions: dict[str, Action]) -> Callable[[], None]:
    """Route the named hooks of every item of the session through ``actions``; returns what undoes it.

    ``item.ihook`` asks ``session.gethookproxy`` at each access, and that hands out ``config.hook`` itself where all
    conftests apply, so both are stood in for.
    """
    config, gethookproxy = session.config, session.gethookproxy
    real = config.hook
    everywhere = _StandIn(real, actions)
    config.hook = everywhere  # type: ignore[assignment]

    conftests: Any = config.pluginmanager._conftest_plugins
    known: dict[int, tuple[Path, int, Any]] = {}

    def proxy(fspath: Path) -> Any:
        # Asked for ten times per test, and always the same until there is another conftest.
        path, number, relay = known.get(id(fspath), (None, 0, None))
        if path is not fspath or number != len(conftests):
            found: Any = gethookproxy(fspath)
            relay = found if found is everywhere else _StandIn(found, actions)
            known[id(fspath)] = fspath, len(conftests), relay
        return relay

    session.gethookproxy = proxy  # type: ignore[method-assign,assignment]

    def undo() -> None:
        config.hook = real
        del session.gethookproxy

    return undo


OWN: Final = "_pytest."


def call_own(config: pytest.Config, caller: HookCaller, kwargs: dict[str, Any], *, firstresult: bool = False) -> Any:
    """Call only pytest's own implementations of a hook."""
    own = [impl for impl in caller.get_hookimpls() if _is_own(impl)]
    return config.pluginmanager._hookexec(caller.name, own, kwargs, firstresult)


def _is_own(impl: HookImpl) -> bool:
    return str(getattr(impl.function, "__module__", "")).startswith(OWN)


class _Impl:
    """A hook wrapper whose generator is a `_Step`; every other attribute is the implementation's."""

    def __init__(self, impl: HookImpl) -> None:
        self._impl = impl

    def function(self, *args: Any, **kwargs: Any) -> _Step:
        return _Step(self._impl.function(*args, **kwargs), own=_is_own(self._impl))  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._impl, name)


class _Step:
    """The generator of a wrapper that `Forked` may leave.

    The second half of a wrapper runs in the child. In the parent, pytest's own wrappers are closed, which undoes
    what they set up in this process; those of others are kept suspended for ever: closing them would run their
    ``finally`` a second time, and so would the garbage collector.
    """

    def __init__(self, generator: Generator[Any, Any, Any], *, own: bool) -> None:
        self._generator = generator
        self._own = own
        self._left = False

    def __next__(self) -> Any:
        return next(self._generator)

    def send(self, result: Any) -> Any:
        # an old-style wrapper is handed the exception inside a Result
        if isinstance(getattr(result, "exception", None), Forked):
            self._leave()
            raise StopIteration
        return self._generator.send(result)

    def throw(self, exception: BaseException) -> Any:
        __tracebackhide__ = True
        if isinstance(exception, Forked):
            self._leave()
            raise exception
        return self._generator.throw(exception)

    def _leave(self) -> None:
        if self._own:
            self._generator.close()
        else:
            self._left = True
            keep_for_ever(self._generator)

    def close(self) -> None:
        if not self._left:
            self._generator.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)


def call_leavable(
    config: pytest.Config, caller: HookCaller, kwargs: dict[str, Any], *, firstresult: bool = False
) -> Any:
    """Call a hook whose wrappers `Forked` may leave in the parent."""
    __tracebackhide__ = True
    impls = [_Impl(impl) if impl.wrapper or impl.hookwrapper else impl for impl in caller.get_hookimpls()]
    return config.pluginmanager._hookexec(caller.name, impls, kwargs, firstresult)  # type: ignore[arg-type]


# --- fixtures and the setup stack ------------------------------------------------------------------------------


_INNER: Final = {"function": {"function"}, "class": {"function", "class"}, "module": {"function", "class", "module"}}


def outer_fixture_names(item: pytest.Item, box_scope: str = "function") -> Iterator[str]:
    """Names of the item's fixtures of a scope wider than its box, in the order in which pytest sets them up.

    A class-scoped fixture of a test outside any class lives and ends with the test, so it is none of them.
    """
    info = getattr(item, "_fixtureinfo", None)
    if info is None:
        return
    scopes = getattr(getattr(item, "callspec", None), "_arg2scope", {})
    inner = _INNER[box_scope] if item.getparent(pytest.Class) is not None else _INNER[box_scope] | {"class"}
    for name in info.names_closure:
        definitions: Sequence[FixtureDef[Any]] = info.name2fixturedefs.get(name) or ()
        if not definitions:
            continue
        scope = definitions[-1]._scope
        if inner.isdisjoint((scope.value, getattr(scopes.get(name), "value", scope.value))):
            yield name


def set_up_outer_fixtures(item: pytest.Item, names: Sequence[str]) -> None:
    """Instantiate fixtures through the item's own request, so that their order and finalizers are pytest's."""
    request = item._request  # type: ignore[attr-defined]
    for name in names:
        request.getfixturevalue(name)


def wider_parameters(item: pytest.Item, box_scope: str) -> tuple[tuple[str, int], ...]:
    """(name, number of the parameter) of an item's parametrised fixtures that are wider than its box."""
    callspec: Any = getattr(item, "callspec", None)
    if callspec is None:
        return ()
    inner = _INNER[box_scope]
    return tuple(
        (name, callspec.indices[name]) for name, scope in callspec._arg2scope.items() if scope.value not in inner
    )


def fixture_arguments(item: pytest.Item, name: str) -> Sequence[str]:
    """Names of the fixtures that a fixture of the item requests."""
    arguments: Sequence[str] = item._fixtureinfo.name2fixturedefs[name][-1].argnames  # type: ignore[attr-defined]
    return arguments


def undo_fixture(item: pytest.Item, fixture: Any, request: Any) -> None:
    """Tear a fixture down, and let the item's request set it up again when it is asked for next."""
    fixture.finish(request)
    item._request._fixture_defs.pop(fixture.argname, None)  # type: ignore[attr-defined]


def _state(session: pytest.Session) -> SetupState:
    return session._setupstate


def keep_only_item_in_child(item: pytest.Item, following: Callable[[], pytest.Item | None] = lambda: None) -> None:
    """In the child: what the parent registered on outer nodes is the parent's to run; later additions are ours.

    Tear-down is up to what the ``following`` item needs.
    """
    state, chain = _state(item.session), item.listchain()
    state.stack = {
        node: entry if node is item else ([], entry[1]) for node, entry in state.stack.items() if node in chain
    }
    exact = state.teardown_exact

    def teardown_exact(nextitem: pytest.Item | None) -> None:  # noqa: ARG001 - the child's next item may be none
        exact(following())

    state.teardown_exact = teardown_exact  # type: ignore[method-assign]


def drop_item_in_parent(item: pytest.Item) -> None:
    """In the parent: the item's own finalizers ran in the child."""
    entry = _state(item.session).stack.get(item)
    if entry is not None:
        entry[0].clear()


def ends_outer_nodes(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Whether the teardown of ``item`` tears down more than the item. If not, the item is taken off the stack."""
    stack = _state(item.session).stack
    nodes = [node for node in stack if node is not item]
    wanted = nextitem.listchain() if nextitem is not None else []
    if nodes != wanted[: len(nodes)]:
        return True
    stack.pop(item, None)
    return False


def forget_current_test() -> None:
    """What pytest's own ``pytest_runtest_teardown`` does to the environment at its end."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)


def forget_unraisable(config: pytest.Config) -> None:
    """Drop what the child inherited and reports: exceptions of ``__del__`` and of threads seen before the fork."""
    for module, name in (("unraisableexception", "unraisable_exceptions"), ("threadexception", "thread_exceptions")):
        queue = untold(config, module, name)
        if queue is not None:
            queue.clear()


def untold(config: pytest.Config, module: str, name: str) -> Any:
    """The queue of that name of one of pytest's plugins; None before pytest 8.4."""
    key: Any = getattr(config.pluginmanager.get_plugin(module), name, None)
    return config.stash.get(key, None) if key is not None else None


# --- warnings --------------------------------------------------------------------------------------------------


def records_warnings(config: pytest.Config) -> bool:
    """Whether pytest records a test's warnings, to be summarised at the end."""
    return config.pluginmanager.hasplugin("warnings")


def replay_warning(message: warnings.WarningMessage) -> None:
    """Hand a warning to whoever records warnings in this process, past all filters (it passed them already)."""
    warnings._showwarnmsg(message)  # type: ignore[attr-defined]


def warn_at_fixture(fixture: Any, warning: Warning) -> None:
    """Show a warning at a fixture's definition, as the user's filters want it; where they make it an error, too.

    It is about this plugin, and fails no test.
    """
    code = getattr(fixture.func, "__code__", None)
    place = (code.co_filename, code.co_firstlineno) if code is not None else (__file__, 1)
    with warnings.catch_warnings(record=True) as log:
        try:
            warnings.warn_explicit(warning, None, *place)
        except Warning:
            log.append(warnings.WarningMessage(warning, type(warning), *place))
    for message in log:
        replay_warning(message)


# --- what tests leave in the session ---------------------------------------------------------------------------


def set_report_sections(item: pytest.Item, sections: Sequence[tuple[str, str]]) -> None:
    """The sections (title, text) that the item's next report starts with."""
    item._report_sections.clear()
    for title, text in sections:
        key, _, when = title.removeprefix("Captured ").rpartition(" ")
        item.add_report_section(when, key, text)


def drop_own_frames(excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Take the frames of lockstep that lie between pytest's and the user's out of a traceback.

    To hide them is not enough: where all frames but pytest's are hidden, pytest shows its own, unless there are others.
    """
    package = os.path.dirname(__file__)
    own = {os.path.join(package, name) for name in ("protocol.py", "internals.py", "placement.py", "plugin.py")}
    foreign = excinfo.tb
    passed: list[Any] = []
    while (frame := foreign.tb_next if not passed else passed[-1].tb_next) is not None:
        if frame.tb_frame.f_code.co_filename in own:
            passed.append(frame)
            continue
        foreign.tb_next = frame  # past those of ours
        foreign, passed = frame, []


def marked_text(longrepr: Any) -> str:
    """What a longrepr shows on a terminal with colours."""
    text = io.StringIO()
    writer = TerminalWriter(text)
    writer.hasmarkup = True
    longrepr.toterminal(writer)
    return text.getvalue().strip("\n")


# --- reports that pytest's process makes itself ----------------------------------------------------------------


def _add_to_section(report: pytest.TestReport, title: str, text: str) -> None:
    """One section of a title, as one process's capture gives it; stdout before stderr before log."""
    titles = [each for each, _ in report.sections]
    if title in titles:
        place = titles.index(title)
        report.sections[place] = (title, report.sections[place][1] + text)
        return
    order = {"stdout": 0, "stderr": 1, "log": 2}
    kind, _, when = title.removeprefix("Captured ").rpartition(" ")
    later = [
        number
        for number, each in enumerate(titles)
        if each.endswith(f" {when}") and order.get(each.split(" ")[1], 3) > order.get(kind, 3)
    ]
    report.sections.insert(later[0] if later else len(titles), (title, text))


def merge_teardown(
    childs: pytest.TestReport, item: pytest.Item, call: pytest.CallInfo[None], ours: pytest.TestReport | None
) -> None:
    """Add to the child's teardown report what tearing down outer fixtures took, printed and raised here."""
    childs.duration += call.duration if ours is not None or item._report_sections else 0.0
    for when, key, text in item._report_sections:
        _add_to_section(childs, f"Captured {key} {when}", text)
    if ours is None or ours.passed:
        return
    if childs.passed:
        childs.outcome, childs.longrepr = ours.outcome, ours.longrepr
    else:
        childs.sections.append(("teardown of outer fixtures", str(ours.longrepr)))
