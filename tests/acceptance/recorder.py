"""A pytest plugin that writes down what a run's reporters hear, one JSON object a line, in order.

Copied into the directory of an inner run and loaded with ``-p recorder``; NSBOX_RECORD names the file.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

KNOWN = {
    "nodeid",
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
    "sandbox_limits",
    "sandbox_kept",
    "item_index",
    "node",
    "worker_id",
    "testrun_uid",
    "context",
}


class Recorder:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, event: str, **fields: Any) -> None:
        os.write(self._fd, json.dumps({"event": event, "pid": os.getpid(), **fields}).encode() + b"\n")

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self.write("start", nodeid=nodeid, location=list(location))

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        self.write("finish", nodeid=nodeid, location=list(location))

    def pytest_runtest_logreport(self, report: Any) -> None:
        crash = getattr(report.longrepr, "reprcrash", None)
        others = {name: repr(value) for name, value in vars(report).items() if name not in KNOWN}
        self.write(
            "report",
            nodeid=report.nodeid,
            when=report.when,
            outcome=report.outcome,
            longrepr=None if report.longrepr is None else str(report.longrepr),
            printed_as=[hasattr(report.longrepr, name) for name in ("toterminal", "reprcrash", "reprtraceback")],
            crash=None if crash is None else [crash.path, crash.lineno, crash.message],
            sections=[list(section) for section in report.sections],
            properties=[[name, str(value)] for name, value in report.user_properties],
            duration=report.duration,
            seconds=report.stop - report.start,
            keywords=sorted(report.keywords),
            location=list(report.location),
            context=str(getattr(report, "context", None)),
            others=others,
        )

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str, location: Any) -> None:
        self.write(
            "warning",
            nodeid=nodeid,
            when=when,
            category=warning_message.category.__name__,
            message=str(warning_message.message),
            place=[warning_message.filename, warning_message.lineno],
        )

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        self.write("end", status=int(exitstatus), failed=session.testsfailed, collected=session.testscollected)


def pose_as_pytests_own() -> None:
    """A reporter of somebody else's would keep tests from being forked ahead."""
    for name, function in vars(Recorder).items():
        if name.startswith("pytest_"):
            function.__module__ = "_pytest.recorder"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("NSBOX_RECORD")
    if os.environ.get("NSBOX_RECORDER_IS_OWN"):
        pose_as_pytests_own()
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(path), "nsbox-test-recorder")
