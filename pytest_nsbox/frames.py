"""What a frame of a test's must hold: the test's process can write anything to its socket, and pytest's goes on.

`check` looks at what pytest and other plugins take for granted of what is in a report, a warning or a measurement; what
only decides what the test itself is said to have done is the test's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_nsbox.real import os
from pytest_nsbox.relay import ChannelClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.relay import Frame

    Check = Callable[[Any], bool]

PHASES: Final = ("setup", "call", "teardown")
_LONGEST_TIME: Final = 1e12  # seconds; comparisons with what is no number are false
_LAST_LINE: Final = 1 << 24  # of a source file: coverage keeps a bit for each


def check(frame: Frame) -> None:
    """Raise ChannelClosedError, with the name of the field, if a frame is not what `child.Child` sends."""
    kind = frame["t"]
    fields = _KINDS.get(kind)
    if fields is None:
        raise ChannelClosedError(f"the test wrote a frame of unknown kind {kind[:40]!r}")
    try:
        for name, right in fields.items():
            if not right(frame.get(name)):
                raise ChannelClosedError(f"the test wrote a frame {kind!r} without a proper {name!r}")
        for name, value in frame.items():
            if name not in fields and name in _LEFT and not _LEFT[name](value):
                raise ChannelClosedError(f"the test wrote a frame {kind!r} without a proper {name!r}")
    except RecursionError:
        raise ChannelClosedError(f"the test wrote a frame {kind!r} that is nested too deeply") from None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_number_or_none(value: object) -> bool:
    return value is None or type(value) is int


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and -_LONGEST_TIME < value < _LONGEST_TIME


def _is_line(value: Any) -> bool:
    return type(value) is int and -_LAST_LINE < value < _LAST_LINE


def _is_path(value: object) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _is_list(value: object, *of: Check) -> bool:
    """Whether it is a list with one element for each of these checks."""
    return isinstance(value, list) and len(value) == len(of) and all(map(_holds, of, value))


def _holds(right: Check, value: object) -> bool:
    return right(value)


def _is_truth(value: object) -> bool:
    return isinstance(value, bool)


def _is_list_of(right: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(right, value))


def _is_passed(value: object) -> bool:
    return _is_list(value, PHASES.__contains__, _is_text, _is_time, _is_time, _is_time)


def _is_logged_report(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_text(value.get("nodeid"))
        and _is_list(value.get("location"), _is_text, _is_number_or_none, _is_text)
        and isinstance(value.get("keywords"), dict)
        and _is_text(value.get("outcome"))
        and _is_text_or_none(value.get("when"))
        and all(_is_time(value[name]) for name in ("duration", "start", "stop") if name in value)
        and _PAIRS_OF_TEXT(value.get("sections"))
        and _PAIRS(value.get("user_properties"))
        and _is_longrepr(value.get("longrepr"))
    )


def _is_longrepr(value: object) -> bool:
    if isinstance(value, dict):
        # What else it holds `relay.report_from_data` tries out: it is pytest's own.
        crash = value.get("reprcrash")
        return crash is None or (
            isinstance(crash, dict) and _is_path(crash.get("path")) and _is_line(crash.get("lineno"))
        )
    return value is None or isinstance(value, str) or _is_list(value, _is_text, _is_number_or_none, _is_text)


def _is_report(value: Any) -> bool:
    return _is_logged_report(value) and value.get("when") in PHASES


def _is_warning(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_is_text(value.get(name)) for name in ("module", "class", "text"))
        and _is_path(value.get("filename"))
        and _is_line(value.get("lineno"))
        and (value.get("args") is None or isinstance(value["args"], list))
        and _is_text_or_none(value.get("line"))
        and _is_text_or_none(value.get("source"))
    )


def _is_coverage(value: Any) -> bool:
    """Context -> kind -> file -> values."""
    return value is None or (
        isinstance(value, dict)
        and all(
            isinstance(kinds, dict)
            and all(
                kind in _MEASURED and isinstance(files, dict) and all(map(_MEASURED[kind], files.values()))
                for kind, files in kinds.items()
            )
            for kinds in value.values()
        )
    )


def _are_lines(values: Any) -> bool:
    return isinstance(values, list) and (
        not values or (set(map(type, values)) == {int} and min(values) > -_LAST_LINE and max(values) < _LAST_LINE)
    )


_MEASURED: Final[dict[str, Check]] = {
    "lines": lambda lines: _are_lines(lines) and min(lines, default=0) >= 0,
    "arcs": lambda arcs: isinstance(arcs, list) and all(_are_lines(arc) and len(arc) == 2 for arc in arcs),
    "tracers": lambda names: _is_list(names, _is_text),
}
_PAIRS_OF_TEXT: Final = _is_list_of(lambda pair: _is_list(pair, _is_text, _is_text))
_PAIRS: Final = _is_list_of(lambda pair: isinstance(pair, list) and len(pair) == 2)


def _is_stop(value: object) -> bool:
    return value is None or isinstance(value, (int, str))


# What the frames of any kind may tell besides.
_LEFT: Final[dict[str, Check]] = {
    "warnings": _is_list_of(_is_warning),
    "raised": lambda raised: raised is None or _is_list(raised, _is_text, _is_text, _is_text),
    "attributes": lambda value: isinstance(value, dict),
    "testsuite_properties": _PAIRS,
    "xml_attributes": lambda value: isinstance(value, dict),
    "failed_subtests": lambda value: type(value) is int,
    "stops": lambda value: _is_list(value, _is_stop, _is_stop),
    "coverage": _is_coverage,
    "unraisable": _is_list_of(_is_text),
}
_KINDS: Final[dict[str, dict[str, Check]]] = {
    "report": {"report": _is_report},
    "passed": {"report": _is_passed},
    "log": {"report": _is_logged_report, "captured": _is_truth},
    "ask": {"what": lambda what: isinstance(what, (str, list))},
    "pdb": {"entered": _is_truth},
    "limit": {"seconds": lambda seconds: seconds is None or _is_time(seconds), "thread": _is_truth},
    "end": {},
    "done": {},
    "interrupt": {"place": lambda place: place is None or _is_list(place, _is_path, _is_line, _is_text)},
    "exit": {"message": _is_text_or_none, "returncode": _is_number_or_none},
    "internal": {"text": _is_text},
    "failed": {"text": _is_text},
}
