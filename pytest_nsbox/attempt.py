"""One run of one test in one box, as pytest's own process sees it."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_nsbox.frames import check
from pytest_nsbox.real import os
from pytest_nsbox.relay import Channel, ChannelClosedError, Frame, Poller

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_nsbox.child import Child
    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.timeouts import Backstop
    from pytest_nsbox.warden.client import Box
    from pytest_nsbox.zygote import Zygote

SOON: Final = 0.003  # seconds
ATTEMPT: Final = pytest.StashKey["Attempt"]()


class Attempt:
    """One run of one item in one box, seen from pytest's process. A rerun is another attempt."""

    zygote: Zygote | None = None  # that forked its process in place of pytest's

    def __init__(self, item: pytest.Item, spec: Spec) -> None:
        self.item = item
        self.spec = spec
        self.phase = "setup"
        self.box: Box | None = None
        self.pid = 0
        self.child: Child | None = None  # set in the child only
        # On the clock of time.perf_counter: of the fork or, forked ahead, of its turn; of its end.
        self.started = self.stopped = 0.0
        self.begun = True  # False while it waits for its turn, forked ahead
        self.is_heard_of = False  # by plugins besides pytest's own, who may stop the run then
        self.adopted = False  # it runs already, and its protocol in pytest's process begins only now
        self.random_state: Any = None  # of `random` at the fork
        self.reported = 0.0  # seconds, of the phases whose reports have come
        self.keywords: Frame = {}  # of the item at the fork, as reports spell them
        self.reports: dict[str, pytest.TestReport] = {}
        self.last_report: pytest.TestReport | None = None
        self.raised: list[str] | None = None  # by the phase of that report, as `exception_from_data` takes it
        self.stand_in: BaseException | None = None  # for it, in pytest's process
        self.sections: list[tuple[str, str]] = []
        self.ended = False  # no process of the test is left to wait for
        self.timed_out = False
        self.died = False  # before its last frame
        self.failed = False  # in some phase, or died
        self.keeps = False  # what it changed is wanted if it fails
        self.kept = ""  # where
        self.oom_told = False  # a failed report says already that the kernel killed something
        self.stacks = ""  # of all threads, when it timed out
        self.backstop: Backstop | None = None  # another plugin's limit, enforced from outside
        self.paused = False  # a debugger is at work: no deadline
        self._paused_at = 0.0
        self.grouped = False  # other tests may run in the same box and process
        self.following: pytest.Item | None = None  # the one that does next
        self.lapped = False  # over, in a box that another test goes on in
        self.before: Mapping[str, float] = {}  # what the tests before used of the box
        self.after: Mapping[str, float] = {}
        self.hits_before = self.hits_after = 0  # how often the limit of processes was met
        self.channel: Channel | None = None
        self._poller: Poller | None = None
        self._pidfd = -1
        self._unread: list[Frame] = []
        self._refused: ChannelClosedError | None = None  # what it wrote is no frame, and nothing after it is read

    @property
    def forked(self) -> bool:
        return self.pid != 0 or self.child is not None

    def attach(self, pid: int, pidfd: int, channel: Channel) -> None:
        """In pytest's process, after the fork."""
        self.pid, self._pidfd, self.channel = pid, pidfd, channel
        self._poller = Poller(channel, pidfd)

    def follow(self, previous: Attempt) -> None:
        """In pytest's process: go on in the box and the process of another test."""
        self.grouped, self.box, self.pid, self.channel = True, previous.box, previous.pid, previous.channel
        self._poller, self._pidfd = previous._poller, previous._pidfd
        assert self.box is not None
        self.box.spec = self.spec  # their timeouts and artifacts differ
        self.before, self.hits_before = previous.after, previous.hits_after
        self.keywords = dict.fromkeys(self.item.keywords, 1)
        self.started = time.perf_counter()

    def pause(self, *, entered: bool) -> None:
        """A debugger or a shell starts or ends: its time is not the test's."""
        now = time.perf_counter()
        if entered:
            self._paused_at = now
        elif self.paused:
            self.started += now - self._paused_at
        self.paused = entered

    def begin(self, following: int | None, random_state: Any) -> None:
        """Tell a process that was forked ahead that its turn has come.

        following     number of the next test among the session's items, if there is one
        random_state  of `random`, if it is another one than at the fork
        """
        assert self.channel is not None
        self.begun, self.started = True, time.perf_counter()
        with contextlib.suppress(OSError):  # it died meanwhile: the first wait tells how
            self.channel.send("begin", following=following, random=random_state)

    def close_in_child(self) -> None:
        """In the process of another test: this one is none of its business."""
        self.close()
        if self.box is not None:
            self.box.close_in_child()

    @property
    def deadline(self) -> float | None:
        """When the box is killed, on the clock of ``time.perf_counter``."""
        if self.paused:
            return None
        limit = self.spec.timeout
        if self.backstop is not None:
            limit = self.backstop.seconds if limit is None else min(limit, self.backstop.seconds)
        return None if limit is None else self.started + limit

    @property
    def stopped_by_backstop(self) -> bool:
        """Of a test that timed out: not its own ``timeout`` but another plugin's limit was the shorter."""
        timeout = self.spec.timeout
        return self.backstop is not None and (timeout is None or self.backstop.seconds < timeout)

    def next_frame(self, deadline: float | None, meanwhile: Callable[[], None] | None = None) -> Frame | None:
        """The next frame; None when the process has ended and everything it sent was read. Raises TimeoutError.

        meanwhile  is called if it does not come soon
        """
        assert self.channel is not None
        assert self._poller is not None
        if self._unread:
            return self._unread.pop(0)
        while (frame := self._take()) is None:
            seconds = None if deadline is None else deadline - time.perf_counter()
            if meanwhile is not None:
                seconds = SOON if seconds is None else min(SOON, seconds)
            readable, exited = self._poller.wait(seconds)
            if meanwhile is not None and not (readable or exited):
                meanwhile()
                meanwhile = None
            if readable:
                if not self.channel.fill(socket.MSG_DONTWAIT if exited else 0):
                    # End of file with the process alive: it closed the socket. Its end is still worth waiting for.
                    self._poller.forget_channel()
                continue
            if exited:
                return None
            if deadline is not None and time.perf_counter() >= deadline:
                raise TimeoutError
        return frame

    def _take(self) -> Frame | None:
        assert self.channel is not None
        if self._refused is not None:
            raise self._refused
        frame = self.channel.take()
        try:
            if frame is not None:
                check(frame)
        except ChannelClosedError as error:
            self._refused = error
            raise
        return frame

    def unread(self, frames: list[Frame]) -> None:
        """Have `next_frame` return these once more, in their order."""
        self._unread[:0] = frames

    def told(self, excinfo: pytest.ExceptionInfo[BaseException] | None) -> bool:
        """Whether an exception in pytest's process only stands for what a report of the test's has told."""
        return excinfo is not None and excinfo.value is self.stand_in

    def signal(self, number: int) -> None:
        """Signal the test's own process; nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to the process group of the test."""
        try:
            os.killpg(self.pid, signal.SIGINT)
        except (ProcessLookupError, PermissionError):
            self.signal(signal.SIGINT)

    def reap(self) -> int:
        """Wait for the test's own process; its return code as `subprocess` gives it. Once only."""
        status = reap_child(self.pid) if self.zygote is None else self.zygote.status(self.pid)
        self.close()
        return os.waitstatus_to_exitcode(status or 0)

    def close(self) -> None:
        """Let go of the descriptors; the process has said its last."""
        self.ended = True
        if self.channel is not None:
            self.channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def end_box(self) -> None:
        """Kill what is left in the box, unless files are to be copied out of it yet: then the release does."""
        assert self.box is not None
        if not self.spec.artifacts and not (self.keeps and self.failed):
            self.box.kill()


def reap_child(pid: int, options: int = 0) -> int | None:
    """The wait status of a child; None while it lives. 0 if something else in this process collected it."""
    try:
        found, status = os.waitpid(pid, options)
    except ChildProcessError:  # SIGCHLD is ignored, or a fixture waits for any child
        return 0
    return status if found else None
