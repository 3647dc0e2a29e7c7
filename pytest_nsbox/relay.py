"""What crosses the socket between pytest and the forked test: frames of JSON, reports, exceptions.

A frame is four bytes of length (big endian) and a JSON object whose ``t`` names its kind. Nothing is ever
unpickled: the child runs code that the box is there to hold, so its bytes may only become plain data.
"""

from __future__ import annotations

import json
import random
import select
import socket as _socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_nsbox.internals import marked_text
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.errors import are_shown_at_the_caller as __tracebackhide__  # noqa: F401 - pytest reads it
from pytest_nsbox.policy.units import LONGEST_WAIT

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Mapping

MAX_FRAME: Final = 1 << 30  # bytes; a longer length means that the test scribbled over our descriptor
LONGEST: Final = 1 << 24  # characters of one text: JSON makes up to six bytes of each, a report has some eight such
_LENGTH: Final = struct.Struct(">I")
_TYPE_NAMES: Final = ("$report_type", "_report_type", "_subtest.context")
_MARKED: Final = "nsbox_marked"

Frame = dict[str, Any]


class ChannelClosedError(Exception):
    """The other side closed the socket, or wrote something that is not a frame."""


class Channel:
    """One end of the socket pair between pytest and a test.

    Holds bound methods of the socket and no module-level ``os``: pyfakefs replaces that in every module.
    """

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._send = sock.sendall
        self._recv = sock.recv
        self._decode = _decode
        self.fileno = sock.fileno
        self.close = sock.close

    def send(self, kind: str, **fields: Any) -> None:
        """Send one frame; values that JSON does not know are sent as their ``str``."""
        self.send_encoded(encode(kind, fields))

    def send_encoded(self, data: bytes) -> None:
        self._send(data)

    def receive(self) -> Frame:
        """Block for one whole frame. Raises `ChannelClosedError` at end of file or on rubbish."""
        while (frame := self.take()) is None:
            if not self.fill():
                raise ChannelClosedError("the test's process closed its pipe")
        return frame

    def fill(self, flags: int = 0) -> bool:
        """Read once what is there; False at end of file."""
        try:
            data = self._recv(1 << 18, flags)
        except ConnectionResetError:
            return False
        self._buffer += data
        return bool(data)

    def send_socket(self, connection: socket) -> None:
        """Send one frame with a socket beside it."""
        data = encode("reply", {"value": None})
        _socket.send_fds(self._sock, [data], [connection.fileno()])  # type: ignore[arg-type]  # the C class has what it uses

    def receive_socket(self) -> socket:
        """Wait for the answer that brings a socket. Raises BoxFailed with the reason if it brings none."""
        data, fds, _, _ = _socket.recv_fds(self._sock, 1 << 16, 1, _socket.MSG_CMSG_CLOEXEC)  # type: ignore[arg-type]  # as above
        self._buffer += data
        reply = self.receive()
        if "error" in reply:
            raise BoxFailed(reply["error"])
        return _socket.socket(fileno=fds[0])

    def take(self) -> Frame | None:
        """One frame out of what was read already, or None."""
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        (length,) = _LENGTH.unpack_from(buffer)
        if length > MAX_FRAME:
            raise ChannelClosedError(f"the test wrote {length} bytes of length where a frame starts")
        if len(buffer) < 4 + length:
            return None
        try:
            text = str(memoryview(buffer)[4 : 4 + length], "utf-8")
            frame, end = self._decode(text)
        except (ValueError, RecursionError):
            raise ChannelClosedError("the test wrote something that is not JSON where a frame starts") from None
        if end != len(text):
            raise ChannelClosedError("the test wrote more than a JSON value where a frame starts")
        del buffer[: 4 + length]
        if not isinstance(frame, dict) or not isinstance(frame.get("t"), str):
            raise ChannelClosedError("the test wrote JSON that is not a frame")
        return frame


def encode(kind: str, fields: Frame) -> bytes:
    """The bytes of one frame. Text that UTF-8 cannot carry (lone surrogates) survives as JSON escapes."""
    data = _encode({"t": kind, **fields}).encode("ascii")
    return _LENGTH.pack(len(data)) + data


def _plain(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return list(value)
    return str(value)


_decode: Final = json.JSONDecoder().raw_decode
_encode: Final = json.JSONEncoder(default=_plain, skipkeys=True).encode


class Poller:
    """Waits for the test's socket and for the end of its process."""

    def __init__(self, channel: Channel, pidfd: int) -> None:
        self._poll = select.poll()
        self._channel = channel.fileno()
        self._pidfd = pidfd
        self._poll.register(self._channel, select.POLLIN)
        self._poll.register(pidfd, select.POLLIN)

    def wait(self, seconds: float | None) -> tuple[bool, bool]:
        """(the socket is readable, the process has ended); both False after ``seconds``, earlier if they are many."""
        rest = None if seconds is None else min(max(0.0, seconds), LONGEST_WAIT) * 1000
        ready = {fd for fd, _ in self._poll.poll(rest)}
        return self._channel in ready, self._pidfd in ready

    def forget_channel(self) -> None:
        """Stop watching a socket that is at its end, else it is ready for ever."""
        self._poll.unregister(self._channel)


class Text:
    """A longrepr that pytest's hooks carry as mere text (a doctest's, an unknown fixture's), shown as it was.

    A plain string would also turn up in the short summary, and lose the colours.
    """

    def __init__(self, plain: str, marked: str) -> None:
        self._plain = plain
        self._marked = marked

    def __str__(self) -> str:
        return self._plain

    def toterminal(self, writer: Any) -> None:
        """Print it."""
        writer.line(self._marked if writer.hasmarkup else self._plain)


def report_to_data(config: pytest.Config, report: pytest.TestReport) -> Frame:
    """A report as plain data, through pytest's own serialisation hook."""
    data = config.hook.pytest_report_to_serializable(config=config, report=report)
    if data is None:
        raise TypeError(f"no plugin can serialise a {type(report).__name__}")
    if isinstance(data.get("longrepr"), str) and hasattr(report.longrepr, "toterminal"):
        data[_MARKED] = marked_text(report.longrepr)
    properties = data.get("user_properties")
    if properties:
        data["user_properties"] = [(name, _property_value(value)) for name, value in properties]
    return {name: shortened(value) for name, value in data.items()}


def shortened(value: Any) -> Any:
    """Plain data with the middle of texts left out that are longer than `LONGEST`."""
    if isinstance(value, str) and len(value) > LONGEST:
        left_out = len(value) - LONGEST
        return f"{value[: LONGEST // 2]}\n[{left_out} characters left out here]\n{value[-LONGEST // 2 :]}"
    if isinstance(value, dict):
        return {key: shortened(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [shortened(each) for each in value]
    return value


_SILENT: Final = frozenset(
    [
        "nodeid",
        "_id",
        "location",
        "keywords",
        "outcome",
        "longrepr",
        "when",
        "user_properties",
        "sections",
        "duration",
        "start",
        "stop",
    ]
)


def passed_to_data(report: pytest.TestReport, keywords: Mapping[str, Any]) -> list[Any] | None:
    """What is particular to a report of a phase that passed in silence, which most do; None for any other.

    The rest stands in pytest's process already: see `passed_from_data`. ``keywords`` are the item's at the fork.
    """
    fields = report.__dict__
    if type(report) is not pytest.TestReport or fields.get("longrepr") is not None or fields["keywords"] != keywords:
        return None
    if report.sections or report.user_properties or not fields.keys() <= _SILENT:
        return None
    return [report.when, report.outcome, report.duration, report.start, report.stop]


def passed_from_data(item: pytest.Item, keywords: Mapping[str, Any], data: list[Any]) -> pytest.TestReport:
    """The report that `passed_to_data` told the particulars of."""
    when, outcome, duration, start, stop = data
    return pytest.TestReport(
        nodeid=getattr(item, "id", item.nodeid),  # pytest >= 9.2 keeps structured ids
        location=item.location,
        keywords=dict(keywords),
        outcome=outcome,
        longrepr=None,
        when=when,
        sections=(),
        duration=duration,
        start=start,
        stop=stop,
        user_properties=None,
    )


_OF_REPORT: Final = frozenset(["t", "report", "warnings", "raised"])
_OF_END: Final = frozenset(["t", "warnings", "random", "coverage", "pages", "unraisable"])
# What pytest-rerunfailures notes at an item about itself, whether that may be rerun or not.
_NOTES: Final = frozenset(
    [
        "_finalizers_suspended",
        "_rerun_condition_excinfos",
        "_rerun_condition_results",
        "_teardown_nextitem",
        "_terminal_errors",
        "_test_failed_statuses",
        "_test_xfailed",
    ]
)


def leaves_nothing(frame: Frame) -> bool:
    """Whether a frame tells only of a phase that passed or skipped, or of the end of a test that left nothing."""
    kind = frame["t"]
    if kind == "end":
        return _tells_no_more(frame, _OF_END)
    if kind == "report":
        report = frame.get("report")
        passed = isinstance(report, dict) and report.get("outcome") in ("passed", "skipped")
        return passed and _tells_no_more(frame, _OF_REPORT)
    return kind == "passed" and _tells_no_more(frame, _OF_REPORT)


def _tells_no_more(frame: Frame, than: frozenset[str]) -> bool:
    more = frame.keys() - than
    return not more or (more == {"attributes"} and frame["attributes"].keys() <= _NOTES)


def phase_of(frame: Frame) -> object:
    """The phase that a frame with a report is of."""
    report = frame["report"]
    if isinstance(report, dict):
        return report.get("when")
    return report[0] if isinstance(report, list) and report else None


def is_plain(value: object, depth: int = 4) -> bool:
    """Whether a value survives JSON as it is."""
    if value is None or type(value) in (bool, int, float, str):
        return True
    if depth == 0:
        return False
    if type(value) is list:
        return all(is_plain(element, depth - 1) for element in value)
    if type(value) is dict:
        return all(type(key) is str and is_plain(element, depth - 1) for key, element in value.items())
    return False


def _property_value(value: object) -> object:
    # junit.xml and every table print str(value) in the end: the same text from here on
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def report_from_data(config: pytest.Config, data: Frame) -> pytest.TestReport:
    """The report that `report_to_data` described, with the tuples that JSON turned into lists.

    Raises ChannelClosedError for what `frames.check` let pass and pytest can make no report of, or cannot show.
    """
    try:
        report = _report_from_data(config, data)
        if not isinstance(report.longrepr, (type(None), str, tuple)):
            str(report.longrepr)
        str(report.head_line)
    except Exception as error:  # noqa: BLE001 - pytest's code on the test's bytes
        text = f"the test wrote a report that cannot be read ({type(error).__name__}: {error})"
        raise ChannelClosedError(shortened(text)) from None
    return report


def _report_from_data(config: pytest.Config, data: Frame) -> pytest.TestReport:
    subtest, marked = data.get("_subtest.context"), data.pop(_MARKED, None)
    report = config.hook.pytest_report_from_serializable(config=config, data=data)
    if report is None:
        raise TypeError(f"no plugin knows a report of type {data.get('$report_type')!r}")
    for name in _TYPE_NAMES:  # for the hook alone; it leaves them on the report
        report.__dict__.pop(name, None)
    report.location = tuple(report.location)
    report.sections = [tuple(section) for section in report.sections]
    report.user_properties = [(str(name), value) for name, value in report.user_properties]
    if not isinstance(getattr(report, "wasxfail", ""), str):
        report.wasxfail = str(report.wasxfail)
    if subtest is not None:
        # They are reprs already; the constructor of a frozen context quotes them once more.
        object.__setattr__(report.context, "kwargs", subtest["kwargs"])
    if isinstance(report.longrepr, list):
        report.longrepr = tuple(report.longrepr)
    elif marked is not None and isinstance(report.longrepr, str):
        report.longrepr = Text(report.longrepr, marked)
    return report  # type: ignore[no-any-return]


def exception_to_data(error: BaseException) -> list[str]:
    """What names an exception: module and name of its class, its text."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the user's own __str__
        text = ""
    return [type(error).__module__, type(error).__qualname__, shortened(text)]


def exception_from_data(data: list[str]) -> BaseException:
    """An exception of the class with that name and that text, for those who ask what a phase raised."""
    module, name, text = data
    error = named_class(module, name, Exception, BaseException)
    try:
        made: BaseException = error.__new__(error)  # not called, as with a warning
    except Exception:  # noqa: BLE001 - a group's wants its exceptions; the user's own may want anything
        made = _new_class(error.__name__, Exception, module)()
    made.args = (text,)
    if issubclass(error, (pytest.skip.Exception, pytest.fail.Exception)):
        made.__dict__["msg"] = text
    return made


def named_class(module: str, name: str, otherwise: type[Any], kind: type[Any]) -> Any:
    """A class of that name in a module that pytest's process has imported, or a new one: a name imports nothing."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        try:
            found = getattr(found, part, None)
        except Exception:  # noqa: BLE001 - a module's own __getattr__
            found = None
    if isinstance(found, type) and issubclass(found, kind):
        return found
    return _new_class(name.rpartition(".")[2], otherwise, module)


def _new_class(name: str, base: type[Any], module: str) -> Any:
    try:
        return type(name, (base,), {"__module__": module})
    except ValueError:  # no name that a class can have
        return base


def set_random_state(state: Any) -> None:
    """Carry on where the test left the generator, as one process would."""
    try:
        version, numbers, gauss = state
        random.setstate((version, tuple(numbers), gauss))
    except (TypeError, ValueError, OverflowError):  # the test's bytes: they may be anything
        pass
