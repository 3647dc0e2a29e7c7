"""pytest's private machinery for one test after another in one child, as `internals` has it for a single one."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

from _pytest.logging import caplog_records_key
from _pytest.outcomes import TEST_OUTCOME
from _pytest.runner import runtestprotocol
from _pytest.skipping import evaluate_skip_marks, evaluate_xfail_marks, xfailed_key
from pluggy import HookImpl

from pytest_nsbox.internals import _Impl, _is_own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pytest


def run_protocol(item: pytest.Item, nextitem: pytest.Item | None, begin: Callable[[], None]) -> None:
    """In a child: one more test, inside pytest's own wrappers of its protocol (warnings, assertions, faulthandler).

    ``begin`` is called in them. Wrappers of others, and what tells reporters, run in the parent. Ends with `Turn`.
    """
    __tracebackhide__ = True

    def protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        __tracebackhide__ = True
        begin()
        runtestprotocol(item, nextitem=nextitem)
        return True

    caller = item.config.hook.pytest_runtest_protocol
    wrappers = [_Impl(impl) for impl in caller.get_hookimpls() if _is_own(impl) and (impl.wrapper or impl.hookwrapper)]
    options: Any = dict.fromkeys(("wrapper", "hookwrapper", "optionalhook", "tryfirst", "trylast"), False)
    options["specname"] = None
    body = HookImpl(None, "nsbox-group", protocol, options)
    kwargs = {"item": item, "nextitem": nextitem}
    item.config.pluginmanager._hookexec(caller.name, [body, *wrappers], kwargs, True)  # type: ignore[list-item]


def not_set_up(item: pytest.Item, names: Sequence[str]) -> list[str]:
    """Those of an item's fixtures that nobody has set up (or tried to) yet."""
    definitions = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
    return [name for name in names if definitions[name][-1].cached_result is None]


def is_skipped(item: pytest.Item) -> bool:
    """Whether a mark skips the item; a condition that fails counts as no, the item's own turn tells."""
    with contextlib.suppress(*TEST_OUTCOME):
        return evaluate_skip_marks(item) is not None
    return False


@contextlib.contextmanager
def active(item: pytest.Item) -> Iterator[None]:
    """Let an item's request be used though it is another's turn to be set up."""
    stack = item.session._setupstate.stack
    if item in stack:
        yield
        return
    stack[item] = ([], None)
    try:
        yield
    finally:
        del stack[item]


def renew_request(item: pytest.Item) -> None:
    """Let an item's request begin anew, and forget failed set-ups of its fixtures, as for an item that is run again."""
    if not hasattr(item, "_request"):
        return
    item._initrequest()  # type: ignore[attr-defined]


def forget_failed_fixtures(item: pytest.Item) -> None:
    """Before an item is run again: its fixtures that failed are tried again (pytest-rerunfailures does the same)."""
    info = getattr(item, "_fixtureinfo", None)
    for definitions in info.name2fixturedefs.values() if info is not None else ():
        for definition in definitions:
            result = getattr(definition, "cached_result", None)
            if result is not None and result[2] is not None:
                definition.cached_result = None


def prepare_late_hooks(item: pytest.Item) -> None:
    """In the parent, for an item that was set up in a child: what pytest's own hooks of later phases look for."""
    item.stash.setdefault(caplog_records_key, {})
    if xfailed_key not in item.stash:
        with contextlib.suppress(*TEST_OUTCOME):
            item.stash[xfailed_key] = evaluate_xfail_marks(item)


def forget_recorded_warnings() -> None:
    """In a child: what pytest recorded before the fork is the parent's to tell."""
    context: Any = getattr(warnings, "_get_context", lambda: None)()  # Python >= 3.14
    for log in (getattr(getattr(warnings, "_showwarnmsg_impl", None), "__self__", None), getattr(context, "log", None)):
        if isinstance(log, list):
            log.clear()
