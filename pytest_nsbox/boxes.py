"""Between lockstep and the warden: boxes for items, what they used, how a test in one died."""

from __future__ import annotations

import faulthandler
import signal
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_nsbox import reporting, results
from pytest_nsbox.coverage_data import Data, Gathered
from pytest_nsbox.policy import hostmounts, outcome, usage
from pytest_nsbox.policy.errors import BoxFailed, SandboxError, SandboxTimeout
from pytest_nsbox.policy.units import format_seconds
from pytest_nsbox.real import os, read_text
from pytest_nsbox.settings import SPEC
from pytest_nsbox.warden.client import Box
from pytest_nsbox.warden.messages import Made, decode, expect

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Sequence

    from pytest_nsbox.admission import Admission
    from pytest_nsbox.attempt import Attempt
    from pytest_nsbox.kept import Kept
    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.warden.client import Released, Warden

STACKS_SIGNAL: Final = signal.SIGRTMIN + 1
ARTIFACTS: Final = "sandbox-artifacts"  # in rootdir
STACKS_PATIENCE: Final = 1.0  # seconds for faulthandler to write the stacks of a test that timed out


class Boxes:
    """The boxes of one session."""

    def __init__(
        self,
        config: pytest.Config,
        start_warden: Callable[[], Warden],
        admission: Admission,
        kept: Kept | None = None,
    ) -> None:
        self._admission = admission
        self.kept = kept  # where files of failed tests go, if they are kept
        self._config = config
        self._start_warden = start_warden
        self._warden: Warden | None = None
        self._next: Spec | None = None
        self.next_item: pytest.Item | None = None
        self._stacks = _StacksFile()
        self._released: dict[int, Released | BoxFailed] = {}  # by id of the attempt, until its teardown report
        self.has_a_box: Callable[[pytest.Item], bool] = lambda _item: False  # that of its group
        self.gathered = Gathered()

    @property
    def warden(self) -> Warden:
        if self._warden is None:
            self._warden = self._start_warden()
        return self._warden

    def close(self) -> None:
        """Have every box ended, and the warden; `Warden.close` waits until nothing of them is left."""
        if self._warden is not None:
            warden, self._warden = self._warden, None
            warden.begin_close()
        self._admission.close()
        self._stacks.close()

    # --- for lockstep

    def spec_of(self, item: pytest.Item) -> Spec | None:
        return item.stash.get(SPEC, None)

    def scope_of(self, item: pytest.Item) -> str:
        """The scope of an item's box; that of an item without one is as good as "function"."""
        spec = self.spec_of(item)
        return "function" if spec is None else spec.scope

    def expect(self, item: pytest.Item | None) -> None:
        """Name the item after the current one: its box is made while the current test runs."""
        self.next_item = item
        self._next = self.spec_of(item) if item is not None else None

    def acquire(self, spec: Spec) -> Box:
        """A box that lives, once it fits beside others that run. Raises BoxFailed if there is none to be had."""
        box = self.acquire_ahead(spec, running=False)
        try:
            self.admit(box)
        except BaseException:
            box.release()
            raise
        return box

    def admit(self, box: Box, *, wait: bool = True) -> bool:
        """Have a box count, before a test runs in it; False if it does not fit now and nobody is to wait."""
        return self._admission.admit(box, wait=wait)

    def acquire_ahead(self, spec: Spec, *, running: bool) -> Box:
        """A box for a test that is `admit`ted later.

        running  another test is: nothing of it is touched, and what is new on the host since it began is not looked for
        """
        try:
            box = self.warden.acquire(spec, late=not running)
            if box.is_alive():
                return box
            box.release()
        except BoxFailed:
            if running or not self.warden.gone:
                raise
        if running:
            raise BoxFailed("the box has ended")
        if self.warden.gone:
            # Somebody killed it, and its boxes ended with it; another serves the tests that are left.
            self.warden.close()
            self._warden = None
        return self.warden.acquire(spec)

    def handed_on(self, made: bytes, fds: Sequence[int], spec: Spec) -> Box:
        """In a fork of pytest's process that forks tests for it: a box that was acquired there.

        made  its `parts`, encoded; ``fds`` are copies of theirs
        """
        return Box(self.warden, expect(decode(made), Made), tuple(fds), spec)

    def make_next(self, *, always: bool = False) -> None:
        """Have boxes of the next test's kind made, if there is none ahead; called when a test is on its way.

        always  also where there is one ahead, but not yet as many as the pool holds
        """
        if self._next is not None and not self._goes_on() and (always or not self.warden.is_ahead(self._next)):
            self.warden.prefetch(self._next)

    def _goes_on(self) -> bool:
        """Whether the next test needs no box, since it shares the current one's."""
        if self._next is None or self._next.scope == "function" or self.next_item is None:
            return False
        return self.has_a_box(self.next_item)

    def enter(self, box: Box) -> None:
        """In the child: everything of the box that is a property of the process."""
        self._admission.close_in_child()
        box.enter()
        box.apply_limits()
        for name, value in box.spec.env:
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._stacks.enable()

    def answer(self, attempt: Attempt, what: str | list[Any]) -> Any:
        """What the ``sandbox`` and ``nsbox`` fixtures ask from inside the box; a list is about an image."""
        box = attempt.box
        assert box is not None
        if what == "usage":
            wall = time.perf_counter() - attempt.started
            used = usage.since(attempt.before, usage.parse(box.counters()))
            return usage.complete(used, attempt.spec, wall_s=wall)
        if what == "changes":
            return box.changes()
        if what == "inspect":
            return inspect(attempt)
        if isinstance(what, list):
            return self._answer_about_image(attempt, what)
        raise ValueError(f"the sandbox fixture asked for {what!r}")

    def _answer_about_image(self, attempt: Attempt, what: list[Any]) -> dict[str, Any]:
        from pytest_nsbox.warden import roots

        _require_nsbox(attempt.item)
        if what[0] != "commit":
            return roots.tell(*what)
        from pytest_nsbox.warden.engine import Engine

        _, box, base, name, pause = what
        engine = Engine(self.connect(attempt))
        try:
            return roots.commit(engine, box, base, name=name, pause=pause)
        finally:
            engine.close()

    def connect(self, attempt: Attempt) -> socket:
        """A connection to the warden for a test that asked for the means to start containers."""
        _require_nsbox(attempt.item)
        return self.warden.connect()

    def coverage(self, data: Data) -> None:
        self.gathered.add(data)

    def stacks(self, attempt: Attempt) -> str:
        """The stacks of all threads of a test that is to be killed for its timeout, as faulthandler writes them."""
        self._stacks.clear()
        attempt.signal(STACKS_SIGNAL)
        return self._stacks.read_when_written(STACKS_PATIENCE)

    def blame_limits(self, attempt: Attempt, report: pytest.TestReport) -> None:
        """End the message of a test that failed with the limits that it met: an OOM kill of its subprocess, a process
        that it could not start.
        """
        spec = attempt.spec
        if (spec.mem is None and spec.pids is None) or attempt.box is None:
            return
        counters = attempt.box.counters()
        used = usage.since(attempt.before, usage.parse(counters))
        met = []
        if spec.mem is not None and used.get("oom_kills"):
            met.append(outcome.oom_line(spec, used))
            attempt.oom_told = True
        if spec.pids is not None and usage.hits(counters).get("pids", 0) > attempt.hits_before:
            met.append(outcome.pids_hint(spec.pids))
        if met:
            reporting.note_limit(report, "\n".join(met))

    def died(self, attempt: Attempt, returncode: int) -> SandboxError:
        """The exception that tells how the test's process ended before the test did."""
        released = self._release(attempt)
        if isinstance(released, BoxFailed):
            return released
        if attempt.timed_out and attempt.stopped_by_backstop:
            assert attempt.backstop is not None
            seconds = format_seconds(attempt.backstop.limit)
            stacks = trim_stacks(attempt.stacks)
            return SandboxTimeout(f"timed out after {seconds} ({attempt.backstop.whose})\n{stacks}")
        stacks = attempt.stacks if attempt.timed_out else self._stacks.take()
        used = usage.since(attempt.before, usage.parse(released.counters))
        ending = outcome.Ending(
            returncode=returncode,
            timed_out=attempt.timed_out,
            oom_kills=int(used.get("oom_kills", 0)),
            phase=attempt.phase,
            stacks=trim_stacks(stacks),
            pids_hit=usage.hits(released.counters).get("pids", 0) > attempt.hits_before,
        )
        error = outcome.classify(ending, attempt.spec, used)
        return error if error is not None else BoxFailed(f"the test's process ended with status {returncode}")

    def ended(self, attempt: Attempt, report: pytest.TestReport) -> None:
        """Put what the test used on its teardown report."""
        if attempt.box is None or not (attempt.ended or attempt.lapped):
            return
        released = self._release(attempt)
        del self._released[id(attempt)]
        if isinstance(released, BoxFailed):  # told already, by the phase that it ended
            return
        attempt.after = usage.parse(released.counters)
        attempt.hits_after = usage.hits(released.counters).get("pids", 0)
        used = usage.complete(
            usage.since(attempt.before, attempt.after),
            attempt.spec,
            wall_s=attempt.stopped - attempt.started,
            files_changed=released.files_changed,
        )
        results.attach(report, usage.as_properties(used), attempt.spec.to_json())
        if attempt.kept:
            results.tell_kept(report, attempt.kept)
        told = [*(f"copied {path}" for path in released.artifacts), *released.problems]
        if told:
            report.sections.append(("sandbox artifacts", "\n".join(told)))
        if used.get("oom_kills") and not (attempt.died or attempt.oom_told):
            reporting.note_limit(report, outcome.oom_line(attempt.spec, used))

    def begin_release(self, attempt: Attempt) -> None:
        """Let the warden take the box back; what it used is asked for later."""
        assert attempt.box is not None
        wanted = attempt.spec.artifacts
        root = self._config.rootpath / ARTIFACTS
        artifacts = os.fspath(root / artifacts_path(attempt.item.nodeid)) if wanted else ""
        if attempt.keeps and attempt.failed and not attempt.kept and self.kept is not None:
            attempt.kept = self.kept.place(artifacts_path(attempt.item.nodeid))
        attempt.box.begin_release(artifacts, ends=not attempt.lapped, keep=attempt.kept)
        if not attempt.lapped:
            self._admission.leave(attempt.box)

    def finish_lap(self, attempt: Attempt) -> None:
        """Take what the warden says of a test whose last report was never made, if it is due. Raises BoxFailed."""
        if attempt.box is not None and attempt.box.lapping:
            attempt.box.release()

    def forget(self, attempt: Attempt) -> None:
        """Take what the warden says of a box that nobody asks about any more. Raises BoxFailed."""
        if attempt.box is not None:
            self._admission.leave(attempt.box)
            attempt.box.release()

    def _release(self, attempt: Attempt) -> Released | BoxFailed:
        """Give the box back, once; what it used, or why nobody knows, is remembered until the teardown report."""
        released = self._released.get(id(attempt))
        if released is None:
            assert attempt.box is not None
            try:
                self.begin_release(attempt)
                released = attempt.box.release()
            except BoxFailed as error:
                released = error
            self._released[id(attempt)] = released
            # Now and not sooner: the warden answers in turn, and a test's report waits for it.
            self.make_next(always=True)
        return released


def _require_nsbox(item: pytest.Item) -> None:
    """Refuse what only containers need to tests that have not said that they start any."""
    if not {"nsbox", "nsbox_session"} & set(getattr(item, "fixturenames", ())):
        raise BoxFailed("a test in a box can start containers only where it, or a fixture, has nsbox as an argument")


def artifacts_path(nodeid: str) -> str:
    """Where below `ARTIFACTS` the files of a test go: its nodeid, as a path that stays there and that a disk takes."""
    file, colons, name = nodeid.partition("::")
    parts = [part if part not in ("", ".", "..") else "_" for part in file.split("/")]
    last = parts[-1] + colons + name.replace("/", "_").replace("\0", "_")
    if len(os.fsencode(last)) > 200:
        import hashlib  # OpenSSL, 4 ms

        last = last[:40] + "-" + hashlib.sha256(os.fsencode(last)).hexdigest()[:16]
    return "/".join([*parts[:-1], last])


def inspect(attempt: Attempt) -> dict[str, Any]:
    """What the kernel tells of the box and of the process in it, under Docker's names."""
    process = f"/proc/{attempt.pid}"
    assert attempt.box is not None
    return {
        "Id": attempt.box.name,
        "Name": attempt.box.name,
        "State": "running",
        "Pid": attempt.pid,
        "Namespaces": {kind: os.readlink(f"{process}/ns/{kind}") for kind in os.listdir(f"{process}/ns")},
        **hostmounts.inspected(read_text(f"{process}/mountinfo"), read_text(f"{process}/cgroup")),
        "Networks": {attempt.spec.net: {}},
        "Limits": attempt.spec.shown(),
        "Image": attempt.spec.rootfs,
    }


def trim_stacks(text: str) -> str:
    """Stacks as faulthandler writes them, without the frames of pytest and pluggy below a test or fixture."""
    kept: list[str] = []
    below = False
    for line in text.splitlines():
        if not line.startswith("  File "):
            below = False
        elif kept and kept[-1].startswith("  File ") and _is_machinery(line):
            below = True
        if not below:
            kept.append(line)
    return "\n".join(kept)


def _is_machinery(line: str) -> bool:
    return any(part in line for part in ("/_pytest/", "/pluggy/", "/pytest_nsbox/"))


class _StacksFile:
    """A file in memory, shared with every child, that faulthandler writes tracebacks to."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("nsbox-stacks")

    def enable(self) -> None:
        """In the child: fatal signals and `STACKS_SIGNAL` write the stacks of all threads."""
        faulthandler.enable(file=self._fd, all_threads=True)
        faulthandler.register(STACKS_SIGNAL, file=self._fd, all_threads=True)

    def clear(self) -> None:
        os.truncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)

    def take(self) -> str:
        """What was written since the last `clear`, which it is cleared of."""
        size = os.fstat(self._fd).st_size
        text = os.pread(self._fd, min(size, 1 << 20), 0).decode("utf-8", "replace") if size else ""
        if size:
            self.clear()
        return text

    def read_when_written(self, patience: float) -> str:
        """`take`, once something was written and no more came for a moment."""
        deadline, size = time.monotonic() + patience, 0
        while time.monotonic() < deadline:
            time.sleep(0.02)
            now = os.fstat(self._fd).st_size
            if now and now == size:
                break
            size = now
        return self.take()

    def close(self) -> None:
        os.close(self._fd)
