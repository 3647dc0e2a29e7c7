"""Capture, terminal and watchdog of pytest while two processes share them; private parts of it, as in `internals`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pytest


def leave_capture(config: pytest.Config) -> Callable[[], None]:
    """Before pytest's capture wrapper is closed in the parent: its output is the child's to read.

    With file descriptors captured, both processes share one temporary file, which the child is reading or
    writing by now. Returns what undoes the arrangement.
    """
    capture = config.pluginmanager.get_plugin("capturemanager")
    if capture is None:
        return lambda: None
    capture.read_global_capture = lambda: ("", "")

    def undo() -> None:
        del capture.read_global_capture
        if not _shares_files(capture):
            capture.read_global_capture()

    return undo


def _shares_files(capture: Any) -> bool:
    out = getattr(capture._global_capturing, "out", None)
    return out is None or hasattr(out, "targetfd")


def read_captured(config: pytest.Config) -> tuple[str, str]:
    """What a test that died had printed since its last report: (stdout, stderr).

    Empty with ``--capture=sys`` (it was in the dead process's memory) and with ``-s``.
    """
    capture = config.pluginmanager.get_plugin("capturemanager")
    if capture is None or capture._global_capturing is None:
        return "", ""
    out, err = capture.read_global_capture()
    return out or "", err or ""


def prints_meanwhile(config: pytest.Config) -> bool:
    """Whether a test's process writes to pytest's terminal while it runs, so that the two must take turns."""
    option = config.option
    if getattr(option, "usepdb", False) or getattr(option, "trace", False) or getattr(option, "setupshow", False):
        return True
    capture = config.pluginmanager.get_plugin("capturemanager")
    logging = config.pluginmanager.get_plugin("logging-plugin")
    if capture is None or capture._method in ("no", "tee-sys"):
        return True
    return logging is not None and bool(logging._log_cli_enabled())


def hide_setup_show(config: pytest.Config) -> Callable[[], None]:
    """Keep the runner from printing the ``--setup-show`` line, which the test's process prints; returns the undoing."""
    shown = config.option.setupshow
    config.option.setupshow = False

    def undo() -> None:
        config.option.setupshow = shown

    return undo


_LIVE_LOG: Final = ("_first_record_emitted", "_test_outcome_written")


def terminal_state(config: pytest.Config) -> list[Any]:
    """What decides how pytest's next words look: the terminal's current line, as its writer knows it (it right-aligns
    by that), and what live logging has printed for the test."""
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    handler = getattr(config.pluginmanager.get_plugin("logging-plugin"), "log_cli_handler", None)
    line = getattr(getattr(terminal, "_tw", None), "_current_line", None)
    return [line, *(getattr(handler, name, None) for name in _LIVE_LOG)]


def set_terminal_state(config: pytest.Config, state: Any) -> None:
    """Make this process know what another wrote; ``state`` may be anything, a test can have sent it."""
    if not isinstance(state, list) or len(state) != 1 + len(_LIVE_LOG):
        return
    line, *flags = state
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and isinstance(line, str):
        terminal._tw._current_line = line
    handler = getattr(config.pluginmanager.get_plugin("logging-plugin"), "log_cli_handler", None)
    for name, flag in zip(_LIVE_LOG, flags, strict=True):
        if isinstance(flag, bool) and hasattr(handler, name):
            setattr(handler, name, flag)


def forget_live_log(config: pytest.Config) -> None:
    """In a child, before another test: the first record of live logging that it prints begins a line."""
    logging: Any = config.pluginmanager.get_plugin("logging-plugin")
    if logging is not None:
        logging.log_cli_handler.reset()


def pause_faulthandler_timer(config: pytest.Config) -> Callable[[], None]:
    """Stop the watchdog of ini ``faulthandler_timeout`` before a fork; returns what starts it anew, in the child.

    It is a thread, which the fork does not carry over: to cancel it in the child would wait for it for ever.
    """
    plugin: Any = config.pluginmanager.get_plugin("faulthandler")
    timeout = plugin.get_timeout_config_value(config) if plugin is not None else 0.0
    if timeout <= 0:
        return lambda: None
    import faulthandler

    faulthandler.cancel_dump_traceback_later()
    leaves = getattr(plugin, "get_exit_on_timeout_config_value", None)
    ends = bool(leaves(config)) if leaves is not None else False
    file = config.stash[plugin.fault_handler_stderr_fd_key]
    return lambda: faulthandler.dump_traceback_later(timeout, file=file, exit=ends)


def is_capturing(config: pytest.Config) -> bool:
    """Whether what is printed now goes into pytest's capture, and not to the terminal."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    captured = getattr(capture, "_global_capturing", None)
    return captured is not None and bool(captured.is_started())


@contextlib.contextmanager
def captured_as_the_test(config: pytest.Config) -> Iterator[None]:
    """Around what a reporter prints while the test's output is captured: without a fork it is part of that output."""
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    capture.resume_global_capture()
    try:
        yield
    finally:
        capture.suspend_global_capture(in_=False)
