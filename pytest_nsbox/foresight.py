"""pytest's private machinery for tests that are forked ahead, as `internals` has it for those that are not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from pytest_nsbox.internals import OWN

if TYPE_CHECKING:
    import warnings
    from collections.abc import Callable, Iterable, Sequence

    import pytest
    from pluggy import HookImpl

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


def strangers(hooks: Any, names: Iterable[str], *others: str) -> list[HookImpl]:
    """The implementations of the named hooks besides those of pytest, this plugin, and modules with a prefix of
    `others`.
    """
    known = (OWN, "pytest_nsbox.", *others)
    impls = (impl for name in names for impl in getattr(hooks, name).get_hookimpls())
    return [impl for impl in impls if not str(getattr(impl.function, "__module__", "")).startswith(known)]


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


_ALIKE: Final[dict[str, Callable[[pytest.Item], bool]]] = {
    # Its timers are the child's, see `timeouts`; only the session's is looked at in pytest's process after each test.
    "pytest_timeout": _has_no_session_timeout,
    "pytest_rerunfailures": _is_not_rerun,
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


def collectors_are_ready(item: pytest.Item) -> bool:
    """Whether exactly the item's collectors are set up, without an error, and no other item is."""
    stack = item.session._setupstate.stack
    return list(stack) == item.listchain()[:-1] and all(failure is None for _, failure in stack.values())


def fixtures_are_ready(item: pytest.Item, names: Sequence[str]) -> bool:
    """Whether these fixtures of the item's are set up, with its parameters and without an error."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    for name in names:
        cached = item._fixtureinfo.name2fixturedefs[name][-1].cached_result  # type: ignore[attr-defined]
        if cached is None or cached[2] is not None or cached[1] is not parameters.get(name):
            return False
    return True


def record_warning(item: pytest.Item, message: warnings.WarningMessage) -> None:
    """Tell pytest of a warning that a test gave, as the warnings plugin does at the end of the test's protocol."""
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": message, "nodeid": item.nodeid, "when": "runtest", "location": None}
    )
