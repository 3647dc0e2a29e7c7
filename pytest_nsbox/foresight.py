"""pytest's private machinery for tests that are forked ahead, as `internals` has it for those that are not."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest
from _pytest.fixtures import FixtureDef, SubRequest
from _pytest.nodes import Node
from _pytest.unittest import TestCaseFunction
from pluggy._hooks import _SubsetHookCaller

from pytest_nsbox.internals import OWN

if TYPE_CHECKING:
    import warnings
    from collections.abc import Callable, Iterable, Sequence

    from pluggy import HookCaller, HookImpl

# Hooks that are called in pytest's process alone, if not for a test that is to run in it.
_OUTSIDE: Final = frozenset(
    [
        "pytest_addhooks",
        "pytest_addoption",
        "pytest_cmdline_main",
        "pytest_cmdline_parse",
        "pytest_collection",
        "pytest_collection_finish",
        "pytest_collection_modifyitems",
        "pytest_collectreport",
        "pytest_collectstart",
        "pytest_configure",
        "pytest_deselected",
        "pytest_ignore_collect",
        "pytest_internalerror",
        "pytest_itemcollected",
        "pytest_keyboard_interrupt",
        "pytest_load_initial_conftests",
        "pytest_plugin_registered",
        "pytest_report_collectionfinish",
        "pytest_report_header",
        "pytest_report_teststatus",
        "pytest_runtest_logfinish",
        "pytest_runtest_logreport",
        "pytest_runtest_logstart",
        "pytest_runtestloop",
        "pytest_sessionfinish",
        "pytest_sessionstart",
        "pytest_terminal_summary",
        "pytest_unconfigure",
        "pytest_warning_recorded",
    ]
)

_BENCHMARKS: Final = pytest.StashKey[bool]()  # whether there are any


def strangers(hooks: Any, names: Iterable[str], *others: str) -> list[HookImpl]:
    """The implementations of the named hooks besides those of pytest, this plugin, and modules with a prefix of
    `others`.
    """
    known = (OWN, "pytest_nsbox.", *others)
    impls = (impl for name in names for impl in getattr(hooks, name).get_hookimpls())
    return [impl for impl in impls if not str(getattr(impl.function, "__module__", "")).startswith(known)]


def without_fork(caller: HookCaller, config: pytest.Config) -> HookCaller:
    """The hook ``pytest_runtest_protocol`` of a test that has a box, and with it a process of its own: pytest-forked
    would fork all of it, and from such a process no box can be asked for.
    """
    forked = config.pluginmanager.get_plugin("pytest_forked")
    return caller if forked is None else _SubsetHookCaller(caller, {forked})


class Listeners:
    """Plugins that hear of tests and have no part in them: a reporter that somebody installed."""

    def __init__(self, config: pytest.Config) -> None:
        self._suite = (config.rootpath, config.invocation_params.dir)
        self._manager = config.pluginmanager
        self._told: dict[int, bool] = {}  # by the plugin's id

    def listens_only(self, plugin: object) -> bool:
        """Whether nothing of its package runs in a test's process, and it is not the suite's own, whose tests may ask
        it what it heard.
        """
        key = id(plugin)
        if key not in self._told:
            self._told[key] = self._find_out(_module_of(plugin))
        return self._told[key]

    def _find_out(self, module: str) -> bool:
        package = _package(module)
        if not package or self._is_of_suite(module):
            return False
        return not any(
            self._has_part(plugin) for plugin in self._manager.get_plugins() if _package(_module_of(plugin)) == package
        )

    def _has_part(self, plugin: object) -> bool:
        callers = self._manager.get_hookcallers(plugin) or ()
        owners = (plugin,) if isinstance(plugin, ModuleType) else type(plugin).__mro__
        return any(caller.name not in _OUTSIDE for caller in callers) or any(
            _is_fixture(value) for owner in owners for value in vars(owner).values()
        )

    def _is_of_suite(self, module: str) -> bool:
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None:
            return True
        path = Path(file)
        if not {"site-packages", "dist-packages"}.isdisjoint(path.parts):
            return False
        return path.name == "conftest.py" or any(path.is_relative_to(directory) for directory in self._suite)


def _module_of(plugin: object) -> str:
    return str(getattr(plugin, "__name__", "") if isinstance(plugin, ModuleType) else type(plugin).__module__)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _is_fixture(value: object) -> bool:
    # Before pytest 8.4 it is the function, with a mark.
    return type(value).__name__ == "FixtureFunctionDefinition" or (
        isinstance(value, FunctionType) and hasattr(value, "_pytestfixturefunction")
    )


def alike_in_child(item: pytest.Item) -> list[str]:
    """Modules of other plugins that take part in a test's protocol, and leave nothing of it in pytest's process."""
    return [module for module, is_alike in _ALIKE.items() if module in sys.modules and is_alike(item)]


def _has_no_session_timeout(item: pytest.Item) -> bool:
    config = item.config
    try:
        return config.getoption("session_timeout") is None and not config.getini("session_timeout")
    except ValueError:  # a pytest-timeout without it
        return True


def _is_not_rerun(item: pytest.Item) -> bool:
    try:
        return sys.modules["pytest_rerunfailures"].get_reruns_count(item) is None
    except (AttributeError, TypeError, ValueError):  # another version, or it was imported and is no plugin of this run
        return False


def _is_any(item: pytest.Item) -> bool:  # noqa: ARG001 - whatever it is
    return True


def _is_not_among_benchmarks(item: pytest.Item) -> bool:
    """A fork beside a benchmark would be measured with it."""
    stash = item.config.stash
    if _BENCHMARKS not in stash:
        stash[_BENCHMARKS] = any("benchmark" in getattr(each, "fixturenames", ()) for each in item.session.items)
    return not stash[_BENCHMARKS]


def _fakes_nothing(item: pytest.Item) -> bool:  # noqa: ARG001 - it is the whole process
    try:
        return sys.modules["pyfakefs.fake_filesystem_unittest"].Patcher.PATCHER is None
    except (KeyError, AttributeError):  # another version
        return False


_ALIKE: Final[dict[str, Callable[[pytest.Item], bool]]] = {
    # Its timers are the child's, see `timeouts`; only the session's is looked at in pytest's process after each test.
    "pytest_timeout": _has_no_session_timeout,
    "pytest_rerunfailures": _is_not_rerun,
    # It has no part in a test of a box, see `without_fork`.
    "pytest_forked": _is_any,
    # Between tests it lays down what a wider fixture faked; without one it looks, and does nothing.
    "pyfakefs.pytest_plugin": _fakes_nothing,
    "pytest_benchmark.plugin": _is_not_among_benchmarks,
    # They take sockets away until the tear-down, and seed generators, whose state is handed on.
    "pytest_socket": _is_any,
    "pytest_randomly": _is_any,
}


def is_surely_not_skipped(item: pytest.Item) -> bool:
    """Whether no mark of the item's has to be looked at to know that it is not skipped: `skipif` with False itself."""
    for mark in item.iter_markers():
        if mark.name == "skip":
            return False
        if mark.name == "skipif":
            conditions = (mark.kwargs["condition"],) if "condition" in mark.kwargs else mark.args
            # Without conditions it is skipped, and with one that is no text and has no reason it is an error.
            if not conditions or mark.kwargs.get("reason") is None or any(each is not False for each in conditions):
                return False
    return True


def know(item: pytest.Item) -> None:
    """Find out what pytest asks about it in each test's process, for Python to remember: its place in its file, and to
    which abstract classes it belongs.
    """
    with contextlib.suppress(Exception):  # a suite's own kind of item, which says so in its turn
        _ = item.location
    _ = isinstance(item, TestCaseFunction), isinstance(getattr(item, "_request", None), SubRequest)


def collectors_are_ready(item: pytest.Item) -> bool:
    """Whether the item's collectors are set up without an error and no other item is, or nobody could notice what is
    left to be done for that.
    """
    stack = item.session._setupstate.stack
    kept = _kept(item)
    return (
        all(failure is None for _, failure in stack.values())
        and _end_quietly(item.session, kept)
        and all(_is_quiet(node) for node in item.listchain()[kept:-1])
    )


def ends_quietly(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Whether nobody could notice what of the item's collectors the next one has torn down."""
    return _end_quietly(item.session, 0 if nextitem is None else _kept(nextitem))


def tear_down_for(session: pytest.Session, nextitem: pytest.Item | None) -> None:
    """Tear down collectors, as pytest does at the end of a test."""
    session._setupstate.teardown_exact(nextitem)


def set_up_collectors(item: pytest.Item) -> None:
    """Do what is left to be done where `collectors_are_ready`."""
    stack = item.session._setupstate.stack
    tear_down_for(item.session, item)
    for node in item.listchain()[len(stack) : -1]:
        stack[node] = ([node.teardown], None)


def _kept(item: pytest.Item) -> int:
    """How many of the nodes that are set up stay so for the item."""
    pairs = zip(item.session._setupstate.stack, item.listchain()[:-1], strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] is pair[1], pairs))


def _end_quietly(session: pytest.Session, kept: int) -> bool:
    stack = session._setupstate.stack
    return all(
        _is_quiet(node) and all(_does_nothing(finalizer, node) for finalizer in stack[node][0])
        for node in list(stack)[kept:]
    )


def _is_quiet(node: Node) -> bool:
    """Whether to set the node up and to tear it down is to do nothing, but for its fixtures."""
    kind = type(node)
    return (
        isinstance(node, pytest.Collector)
        and (kind.setup, kind.teardown) == (Node.setup, Node.teardown)
        and node.__dict__.keys().isdisjoint(["setup", "teardown"])
    )


def _does_nothing(finalizer: object, node: Node) -> bool:
    if isinstance(finalizer, functools.partial):  # how fixtures are finished
        fixture = getattr(finalizer.func, "__self__", None)
        return isinstance(fixture, FixtureDef) and _is_of_plain_class(fixture, node)
    return finalizer == node.teardown


def _is_of_plain_class(fixture: FixtureDef[Any], node: Node | None) -> bool:
    """Whether it is the fixture that calls a test case's setUpClass and tearDownClass, which do nothing."""
    case = getattr(node, "obj", None)
    if fixture.func.__module__ != "_pytest.unittest" or not fixture.argname.startswith("_unittest_setUpClass_fixture_"):
        return False
    unittest = sys.modules.get("unittest")
    if unittest is None or not isinstance(case, type) or not issubclass(case, unittest.TestCase):
        return False
    return (
        not getattr(case, "__unittest_skip__", False)
        and not case._class_cleanups  # type: ignore[attr-defined]
        and all(
            getattr(case, name).__func__ is getattr(unittest.TestCase, name).__func__
            for name in ("setUpClass", "tearDownClass", "doClassCleanups")
        )
    )


def fixtures_are_ready(item: pytest.Item, names: Sequence[str]) -> bool:
    """Whether these fixtures of the item's are set up, with its parameters and without an error, or do nothing."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    for name in names:
        fixture = item._fixtureinfo.name2fixturedefs[name][-1]  # type: ignore[attr-defined]
        cached = fixture.cached_result
        if cached is None:
            if not _is_of_plain_class(fixture, item.getparent(pytest.Class)) or _hears_of_fixtures(item):
                return False
        elif cached[2] is not None or cached[1] is not parameters.get(name):
            return False
    return True


def _hears_of_fixtures(item: pytest.Item) -> bool:
    """Whether a plugin could count how often a fixture is set up."""
    names = ("pytest_fixture_setup", "pytest_fixture_post_finalizer")
    # The latter are after fixtures that are coroutines.
    return bool(strangers(item.ihook, names, "anyio.", "pytest_asyncio."))


def record_warning(item: pytest.Item, message: warnings.WarningMessage) -> None:
    """Tell pytest of a warning that a test gave, as the warnings plugin does at the end of the test's protocol."""
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": message, "nodeid": item.nodeid, "when": "runtest", "location": None}
    )
