"""The views that boxes with ``proc="limits"`` have of their limits (see warden/view.py): what all of a session share.

One timer serves all boxes, and there is none while nobody lives in such a box.
"""

from __future__ import annotations

import os
import time

from pytest_nsbox.kernel import timer
from pytest_nsbox.kernel.mount import NODEV, NOEXEC, NOSUID, RDONLY
from pytest_nsbox.policy import cpus
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.policy.units import parse_cpuset
from pytest_nsbox.real import text_of
from pytest_nsbox.warden.view import DEVICES, DIRECTORY, EMPTY, TICK, View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.kernel.cgroup_node import Node
    from pytest_nsbox.policy.plan import Plan
    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.warden.session import Session
    from pytest_nsbox.warden.view import Forget, Watch

_SLOW = 7  # ticks between two looks at what changes slowly: tasks, disks, the host's own counters


class Views:
    """Those of all boxes of a session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._forget: Forget = os.close
        # What we read ourselves may be the view of a box around us, and not what a new proc or sysfs would show.
        self.nested = session.mode == "nested"
        self.version = session.cgroups.version if session.cgroups is not None else 2
        self._texts: dict[str, tuple[float, str]] = {}
        self._live: list[View] = []
        self._timer = -1
        self._ticks = 0
        self._allowed = tuple(sorted(os.sched_getaffinity(0)))
        # Sessions at one time (workers of xdist) begin in different places.
        self._next_cpu = os.getpid()
        try:
            self.online = parse_cpuset(self.host(f"{DEVICES}/cpu/online").strip())
        except ValueError:
            self.online = self._allowed
        self.cpu_lists = [name for name in cpus.CPU_LISTS if os.path.exists(f"{DEVICES}/{name}")]
        self.nodes = self._find_nodes()
        self.root = self._mount()

    def _find_nodes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return the directories of the memory nodes, each with its CPUs."""
        found: list[tuple[str, tuple[int, ...]]] = []
        directory = f"{DEVICES}/node"
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            place = f"{directory}/{name}/cpulist"
            if name.removeprefix("node").isdigit() and os.path.exists(place):
                text = text_of(place).strip()
                found.append((f"{directory}/{name}", parse_cpuset(text) if text else ()))
        return found

    def _mount(self) -> int:
        """Mount the tmpfs: for us to write, and read-only, for good, for the boxes that bind from it."""
        doors = self._session.doors
        mount = doors.new_mount("tmpfs", (("mode", "755"), ("size", "64m")), NODEV, DIRECTORY)
        try:
            doors.attach(mount, DIRECTORY)
            # On top of the one that is ours to write: what is not attached can be cloned only since Linux 6.15.
            readonly = doors.clone_tree(DIRECTORY)
            try:
                doors.set_attributes(readonly, RDONLY | NOSUID | NODEV | NOEXEC, target=DIRECTORY)
                doors.attach(readonly, DIRECTORY)
            finally:
                os.close(readonly)
            root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
            os.mkdir(EMPTY, 0o755, dir_fd=root)
            return root
        finally:
            os.close(mount)

    def close(self) -> None:
        """Let go of the tmpfs."""
        os.close(self.root)

    def host(self, path: str) -> str:
        """Return the host's text of `path`, at most a tick old."""
        now = time.monotonic()
        read_at, text = self._texts.get(path, (0.0, ""))
        if not text or now - read_at > TICK:
            text = text_of(path)
            self._texts[path] = (now, text)
        return text

    def next_cpus(self, spec: Spec) -> tuple[int, ...]:
        """Return the CPUs of the next box; boxes go round."""
        chosen = cpus.choose_cpus(spec, self._allowed, self._next_cpu)
        if spec.cpu is not None:
            self._next_cpu += len(chosen)
        return chosen

    def make(self, name: str, spec: Spec, plan: Plan, node: Node) -> View:
        """Make the view of a box. Raises KernelError; then nothing is left of it."""
        view = View(self, name, spec, node)
        try:
            self._session.act_as(shifted=plan.shifted)
            try:
                view.make(spec)
            finally:
                self._session.act_as(shifted=False)
        except OSError as error:
            view.close()
            raise KernelError("make the view of", name, error.errno or 0) from None
        except BaseException:
            view.close()
            raise
        return view

    def live(self, view: View, watch: Watch, forget: Forget) -> None:
        """Keep `view` fresh from now on."""
        if view not in self._live:
            self._live.append(view)
        if self._timer < 0:
            self._timer = timer.open_ticks(TICK)
            self._forget = forget
            watch(self._timer, self._tick)

    def dead(self, view: View) -> None:
        """Stop that; the timer goes with the last."""
        if view in self._live:
            self._live.remove(view)
        if not self._live and self._timer >= 0:
            self._forget(self._timer)
            self._timer = -1

    def _tick(self) -> None:
        timer.count(self._timer)
        self._ticks += 1
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        for index, view in enumerate(self._live):
            # Not all at the same tick.
            if (self._ticks + index) % _SLOW == 0:
                view.look_slowly(now)
            view.refresh(now)
