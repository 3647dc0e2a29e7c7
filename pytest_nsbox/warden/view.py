"""What one box with ``proc="limits"`` sees: small files on the session's tmpfs, made with the box, rewritten as long as
somebody lives in it, and bound over the originals; and answers to sysinfo(2).

Who goes into the box tells over a line of its own (see warden/viewed.py). Until then a box that was made ahead costs
nothing.
"""

from __future__ import annotations

import os
import time
from _socket import (
    AF_UNIX,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SOCK_CLOEXEC,
    SOCK_STREAM,
    socket,
    socketpair,
)
from contextlib import suppress

from pytest_nsbox.kernel.listener import NARROW, Listener
from pytest_nsbox.kernel.rights import descriptors, room
from pytest_nsbox.policy import cpus, proc_files, proc_use
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.policy.proc_vmstat import Vmstat
from pytest_nsbox.policy.sysinfo import SysInfo
from pytest_nsbox.real import text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.kernel.cgroup_node import Node
    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.warden.views import Views

    Watch = Callable[[int, Callable[[], None]], None]
    Forget = Callable[[int], None]

DIRECTORY = "views"  # below the session's
# Shorter than the 200 ms that the numbers may be late: the warden may be busy with a box for some of it.
TICK = 0.15
DEVICES = "/sys/devices/system"
EMPTY = "nothing"  # a directory of ours with nothing in it
_MOST_TASKS = 200  # of which the states are read in one look


class _File:
    """One file on our tmpfs. It is never empty and never truncated before it is written: somebody may be reading."""

    __slots__ = ("_fd", "_last")

    def __init__(self, directory: int, name: str, text: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(name, flags, 0o444, dir_fd=directory)
        self._last = b""
        self.write(text)

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        if data == self._last:
            return
        os.pwrite(self._fd, data, 0)
        if len(data) < len(self._last):
            os.ftruncate(self._fd, len(data))
        self._last = data

    def close(self) -> None:
        os.close(self._fd)


class View:
    """What one box sees.

    cpus     numbers of the CPUs that it is to run on
    files    (path below the session's directory, place in the box) of what is bound over the originals
    theirs   descriptor of the box's end of the line, until it is handed out
    began    when the box began, by CLOCK_BOOTTIME
    """

    def __init__(self, views: Views, name: str, spec: Spec, node: Node) -> None:
        self._views = views
        self._name = name
        self._version = views.version
        self._counters: dict[str, int] = {}
        self._files: dict[str, _File] = {}
        self._fixed: list[str] = []
        self.files: list[tuple[str, str]] = []
        self._directory = -1
        self._node = node
        self._load = proc_files.Load()
        self._tasks = proc_use.Tasks()
        self.began = time.clock_gettime(time.CLOCK_BOOTTIME)
        offset = dict(spec.clock).get("boottime")
        if offset is not None:
            self.began = -offset
        self._sampled = 0.0
        self.cpus = views.next_cpus(spec)
        self._line = self.theirs = -1
        self.open_line()
        self._watched: list[int] = []
        self._forget: Forget = os.close
        self._meminfo: proc_files.Meminfo | None = None
        # Of CPU and memory, at the last refresh and at the last slow look.
        self._last = self._did = ("", "")

    def make(self, spec: Spec) -> None:
        """Make the files, as a box that has just begun would see them."""
        views = self._views
        host = views.host
        os.mkdir(self._name, 0o755, dir_fd=views.root)
        self._directory = os.open(self._name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=views.root)
        self._open_counters()
        use = self._memory()
        uptime = self.uptime(time.clock_gettime(time.CLOCK_BOOTTIME))
        bounds = [limit for limit in (spec.mem, use.limit) if limit is not None]
        total = proc_files.meminfo_bytes(host("/proc/meminfo"))
        if bounds and min(bounds) <= total["MemTotal"]:
            swap = spec.swap if spec.swap is not None else total.get("SwapTotal", 0)
            self._meminfo = proc_files.Meminfo(host("/proc/meminfo"), min(bounds), swap)
            self._add("/proc/meminfo", self._meminfo.render(use))
            self._add("/proc/swaps", proc_files.swaps_text(host("/proc/swaps"), self._meminfo.swap_total, use.swap))
        self._stat = proc_files.Stat(host("/proc/stat"), self.cpus, int(time.time() - uptime))
        self._add("/proc/stat", self._stat.render(uptime, proc_use.CpuUse(), self._tasks))
        self._add("/proc/uptime", proc_files.uptime_text(uptime, self._stat.idle))
        self._add("/proc/loadavg", self._load.render(self._tasks))
        self._vmstat = Vmstat(host("/proc/vmstat"), os.sysconf("SC_PAGE_SIZE"))
        self._add("/proc/vmstat", self._render_vmstat(use))
        if self._counters.keys() & set(proc_use.DISK_FILES[self._version]):
            self._add("/proc/diskstats", proc_files.diskstats_text(host("/proc/diskstats"), self._disks()))
        if self.cpus != views.online or views.nested:
            self._make_cpus()

    def _make_cpus(self) -> None:
        views = self._views
        self._add("/proc/cpuinfo", cpus.cpuinfo_text(views.host("/proc/cpuinfo"), self.cpus), live=False)
        for name in views.cpu_lists:
            self._add(f"{DEVICES}/{name}", cpus.cpu_list(self.cpus), live=False)
        for place, there in views.nodes:
            here = tuple(cpu for cpu in there if cpu in self.cpus)
            self._add(f"{place}/cpulist", cpus.cpu_list(here), live=False)
            if mask := views.host(f"{place}/cpumap"):
                self._add(f"{place}/cpumap", cpus.cpu_mask(mask, here), live=False)
        # As those of CPUs that are off: a directory with nothing in it.
        hidden = [cpu for cpu in views.online if cpu not in self.cpus]
        self.files += [(f"{DIRECTORY}/{EMPTY}", f"{DEVICES}/cpu/cpu{cpu}") for cpu in hidden]

    def _add(self, place: str, text: str, *, live: bool = True) -> None:
        name = place.strip("/").replace("/", "-")
        file = _File(self._directory, name, text)
        self._fixed.append(name)
        if live:
            self._files[place] = file
        else:
            file.close()
        self.files.append((f"{DIRECTORY}/{self._name}/{name}", place))

    def _open_counters(self) -> None:
        version = self._version
        wanted = [*proc_use.MEMORY_FILES[version], proc_use.CPU_FILE[version], *proc_use.DISK_FILES[version]]
        for file in (*wanted, proc_use.TASKS_FILE):
            fd = self._node.open_counter(file) if file else None
            if fd is not None:
                self._counters[file] = fd

    def _render_vmstat(self, use: proc_use.MemoryUse) -> str:
        meminfo = self._meminfo
        free = None if meminfo is None else meminfo.free(use)
        swapped = meminfo is None or meminfo.swap_total > 0
        return self._vmstat.render(use, self._disks(), free=free, swapped=swapped)

    def _read(self, file: str) -> str:
        fd = self._counters.get(file)
        if fd is None:
            return ""
        try:
            return os.pread(fd, 65536, 0).decode()
        except OSError:
            # The group is gone: the box is ending.
            return ""

    def _memory(self) -> proc_use.MemoryUse:
        used, stat, swap = proc_use.MEMORY_FILES[self._version]
        return proc_use.memory_use(self._version, self._read(used), self._read(stat), self._read(swap) if swap else "")

    def _disks(self) -> proc_use.Disks:
        return proc_use.disk_use(self._version, *map(self._read, proc_use.DISK_FILES[self._version]))

    # --- its life

    def open_line(self) -> None:
        """Make a line for one more process that goes into the box, and is no child of one there; `follow` it then."""
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        self._line, self.theirs = ours.detach(), theirs.detach()

    def follow(self, watch: Watch, forget: Forget) -> None:
        """Wait until somebody lives in the box.

        `watch` has a function called when a descriptor is readable, `forget` ends that and closes it.
        """
        self._forget = forget
        os.close(self.theirs)
        line, self._line, self.theirs = self._line, -1, -1
        self._watched.append(line)
        watch(line, lambda: self._begin(line, watch))

    def _begin(self, fd: int, watch: Watch) -> None:
        """Take what comes from the box: a word, and perhaps a listener."""
        line = socket(AF_UNIX, SOCK_STREAM, 0, fd)
        try:
            data, ancillary, _, _ = line.recvmsg(1, room(1), MSG_CMSG_CLOEXEC | MSG_DONTWAIT)
            if data:
                self._listen(descriptors(ancillary), watch)
                # Who asked may be killed already.
                with suppress(OSError):
                    line.send(b"f", MSG_NOSIGNAL)
        except BlockingIOError:
            # Another descriptor had this number when it was found readable.
            return
        finally:
            line.detach()
        self._unwatch(fd)

    def _listen(self, fds: list[int], watch: Watch) -> None:
        for fd in fds:
            listener = Listener(fd)
            self._watched.append(fd)
            watch(fd, lambda listener=listener: self._answer(listener))  # type: ignore[misc]
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._sampled = self._sampled or now
        self.look_slowly(now)
        self.refresh(now)
        self._views.live(self, watch, self._forget)

    def _unwatch(self, fd: int) -> None:
        if fd in self._watched:
            self._watched.remove(fd)
            self._forget(fd)

    def uptime(self, now: float) -> float:
        """Seconds since the box began, at `now` by CLOCK_BOOTTIME."""
        return max(0.0, now - self.began)

    def refresh(self, now: float) -> None:
        """Rewrite what must be no older than 200 ms."""
        uptime = self.uptime(now)
        cpu = self._read(proc_use.CPU_FILE[self._version])
        used = self._read(proc_use.MEMORY_FILES[self._version][0])
        # Who did nothing has changed nothing: the dear one of the texts need not be read.
        if (cpu, used) != self._last and self._meminfo is not None:
            self._last = (cpu, used)
            use = self._memory()
            self._files["/proc/meminfo"].write(self._meminfo.render(use))
            if self._meminfo.swap_total:
                text = proc_files.swaps_text(self._views.host("/proc/swaps"), self._meminfo.swap_total, use.swap)
                self._files["/proc/swaps"].write(text)
        self._files["/proc/stat"].write(self._stat.render(uptime, proc_use.cpu_use(self._version, cpu), self._tasks))
        # Never behind the start time of a process that lives: ps(1) subtracts it.
        self._files["/proc/uptime"].write(proc_files.uptime_text(uptime + TICK, self._stat.idle))

    def look_slowly(self, now: float) -> None:
        """Look at tasks and disks, and count the load when it is time."""
        self._stat.set_host(self._views.host("/proc/stat"))
        version = self._version
        did = self._read(proc_use.CPU_FILE[version]), self._read(proc_use.MEMORY_FILES[version][0])
        # Who used no CPU time has started nothing, ended nothing and written nothing.
        idle, self._did = did == self._did, did
        if not idle:
            self._tasks = self._look_at_tasks()
        if now - self._sampled >= proc_files.LOAD_EVERY:
            self._sampled = now
            self._load.sample(self._tasks.running + self._tasks.blocked)
        self._files["/proc/loadavg"].write(self._load.render(self._tasks))
        if idle:
            return
        self._vmstat.set_host(self._views.host("/proc/vmstat"))
        self._files["/proc/vmstat"].write(self._render_vmstat(self._memory()))
        if "/proc/diskstats" in self._files:
            text = proc_files.diskstats_text(self._views.host("/proc/diskstats"), self._disks())
            self._files["/proc/diskstats"].write(text)

    def _look_at_tasks(self) -> proc_use.Tasks:
        threads = self._node.threads()
        states = []
        last = self._tasks.last_pid
        for thread in threads[:_MOST_TASKS]:
            state, pid = proc_use.read_task(text_of(f"/proc/{thread}/status"))
            states.append(state)
            last = max(last, pid)
        scale = max(1.0, len(threads) / _MOST_TASKS)
        running, blocked = (round(states.count(state) * scale) for state in ("R", "D"))
        # Our own process 1 counts, as it does for a program that lists /proc.
        return proc_use.Tasks(len(threads) + 1, running, blocked, last)

    def _answer(self, listener: Listener) -> None:
        """Answer one sysinfo(2)."""
        try:
            asked = listener.receive()
        except KernelError:
            # Nobody is left who could ask.
            self._unwatch(listener.fd)
            return
        if asked is not None:
            number, pid, arch, address = asked
            listener.answer(number, pid, address, self._sysinfo().pack(narrow=arch in NARROW))

    def _sysinfo(self) -> SysInfo:
        uptime = self.uptime(time.clock_gettime(time.CLOCK_BOOTTIME))
        procs = int(self._read(proc_use.TASKS_FILE) or 0) + 1
        loads = self._load.shifted()
        if self._meminfo is None:
            host = proc_files.meminfo_bytes(text_of("/proc/meminfo"))
            keys = ("MemTotal", "MemFree", "Shmem", "Buffers", "SwapTotal", "SwapFree")
            ram, free, shared, buffers, swap, swap_free = (host.get(key, 0) for key in keys)
            return SysInfo(-int(-uptime // 1), loads, ram, free, shared, buffers, swap, swap_free, procs)
        use = self._memory()
        meminfo = self._meminfo
        memory = (meminfo.total, meminfo.free(use), use.shmem, 0, meminfo.swap_total, meminfo.swap_free(use))
        # The kernel rounds the seconds up.
        return SysInfo(-int(-uptime // 1), loads, *memory, procs)

    def close(self) -> None:
        """Let go of everything; a second call does nothing."""
        self._views.dead(self)
        for fd in (self._line, self.theirs):
            if fd >= 0:
                os.close(fd)
        self._line = self.theirs = -1
        for fd in list(self._watched):
            self._unwatch(fd)
        for fd in self._counters.values():
            os.close(fd)
        self._counters.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._directory >= 0:
            for name in self._fixed:
                os.unlink(name, dir_fd=self._directory)
            os.close(self._directory)
            self._directory = -1
            os.rmdir(self._name, dir_fd=self._views.root)
