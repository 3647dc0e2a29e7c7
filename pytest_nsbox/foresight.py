"""pytest's private machinery for tests that are forked ahead, as `internals` has it for those that are not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from pytest_nsbox.internals import OWN

if TYPE_CHECKING:
    import warnings
    from collections.abc import Callable, Iterable, Sequence

    import pytest


def only_own(hooks: Any, names: Iterable[str], *others: str) -> bool:
    """Whether nobody implements the named hooks but pytest, this plugin, and modules with a prefix of `others`."""
    known = (OWN, "pytest_nsbox.", *others)
    return all(
        str(getattr(impl.function, "__module__", "")).startswith(known)
        for name in names
        for impl in getattr(hooks, name).get_hookimpls()
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
