"""Warnings across the socket: what was warned of in a test's process is recorded in pytest's."""

from __future__ import annotations

import linecache
import sys
import warnings
from typing import TYPE_CHECKING, Any

from pytest_nsbox.relay import named_class

if TYPE_CHECKING:
    from pytest_nsbox.relay import Frame


def warning_to_data(message: warnings.WarningMessage) -> Frame:
    """A recorded warning as plain data; the class is named, never pickled."""
    category = message.category
    return {
        "module": category.__module__,
        "class": category.__qualname__,
        "text": str(message.message),
        "args": _plain_args(message.message),
        "filename": message.filename,
        "lineno": message.lineno,
        "line": message.line,
        "source": _allocation(message),
    }


def _allocation(message: warnings.WarningMessage) -> str | None:
    """Where the object that a ResourceWarning is about was allocated, if tracemalloc knows; None without an object."""
    if message.source is None:
        return None
    tracemalloc = sys.modules.get("tracemalloc")
    trace = tracemalloc.get_object_traceback(message.source) if tracemalloc is not None else None
    return "\n".join(trace.format()) if trace is not None else ""


def _plain_args(message: object) -> list[object] | None:
    args = getattr(message, "args", None)
    if isinstance(args, tuple) and all(arg is None or isinstance(arg, (str, int, float)) for arg in args):
        return list(args)
    return None


def warning_from_data(data: Frame) -> warnings.WarningMessage:
    """The warning again."""
    category = named_class(data["module"], data["class"], UserWarning, Warning)
    text, args = data["text"], data.get("args")
    message = _message(category, (text,) if args is None else tuple(args), text) or _message(category, (text,), text)
    if message is None:
        # Its text is made of attributes that we do not know, or its class cannot be made an object of like this.
        message = _message(_told(category), (text,), text) or UserWarning(text)
    line, source = data.get("line"), data.get("source")
    if source:
        # pytest would look for the place where the object of this process was allocated.
        line = (
            f"{line or linecache.getline(data['filename'], data['lineno']).strip()}\n\nObject allocated at:\n{source}"
        )
    stand_in = object() if source == "" else None
    return warnings.WarningMessage(message, category, data["filename"], data["lineno"], None, line, stand_in)


def _message(category: type[Warning], args: tuple[Any, ...], text: str) -> Warning | None:
    """A warning with these arguments, if its text is this one.

    The class is not called: a warning's constructor may want arguments that we do not know.
    """
    try:
        message: Warning = category.__new__(category)
        message.args = args
        return message if str(message) == text else None
    except Exception:  # noqa: BLE001 - the user's own class
        return None


def _told(category: type[Warning]) -> type[Warning]:
    """A class of that name whose text is its first argument, whatever else it knows."""
    names = {"__module__": category.__module__, "__str__": lambda self: self.args[0]}
    try:
        return type(category.__name__, (category,), names)
    except Exception:  # noqa: BLE001 - the user's own class
        return UserWarning
