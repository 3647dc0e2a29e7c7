"""Between the fixtures `nsbox` and `nsbox_session` and pytest: who connects, and what failed tests show."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nsbox import child
from pytest_nsbox.nsbox import NsBox
from pytest_nsbox.policy.errors import BoxFailed

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Generator, Iterator

_PLUGIN = "nsbox-logs"


class Logs:
    """A plugin of the process in which tests use containers: the log of what is left goes into a failed report."""

    def __init__(self) -> None:
        self.live: list[NsBox] = []

    def sections(self) -> list[tuple[str, str]]:
        """Title and text for each box that is left."""
        found = []
        for boxes in self.live:
            for box in boxes.left():
                try:
                    found.append((f"nsbox {box.name} ({box.status})", _tail(box.logs())))
                except BoxFailed as error:
                    found.append((f"nsbox {box.name}", str(error)))
        return found

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        """A failed phase shows the logs of the boxes that are left."""
        report = yield
        if report.failed and self.live:
            report.sections.extend(self.sections())
        return report


def _tail(log: str, most: int = 1 << 16) -> str:
    return log if len(log) <= most else f"[… {len(log) - most} characters before]\n{log[-most:]}"


@contextlib.contextmanager
def boxes(request: pytest.FixtureRequest, *, report: bool) -> Iterator[NsBox]:
    """The value of a fixture: containers started with it are gone afterwards."""
    config = request.config
    found = NsBox(_connector(config), str(config.rootpath))
    logs = config.pluginmanager.get_plugin(_PLUGIN)
    if logs is None:
        logs = Logs()
        config.pluginmanager.register(logs, _PLUGIN)
    if report:
        logs.live.append(found)
    try:
        # Now: later another thread might ask, beside pytest's own.
        found.connect()
        yield found
    finally:
        if report:
            logs.live.remove(found)
        found.close()


def _connector(config: pytest.Config) -> Any:
    def connect() -> socket:
        if child.current is not None:
            return child.current.connect()
        from pytest_nsbox.plugin import RUN

        return config.stash[RUN].connect()

    return connect
