"""The text of /proc/vmstat as a box with ``proc="limits"`` sees it: what it holds now, and what was counted since it
began. Formats: mm/vmstat.c of the kernel.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.policy.proc_use import Disks, MemoryUse

# Names of what is there at this moment begin so; every other name counts since the start. The exceptions count.
_NOW = "nr_"
_COUNTED = frozenset(
    (
        "nr_dirtied",
        "nr_written",
        "nr_throttled_written",
        "nr_vmscan_write",
        "nr_vmscan_immediate_reclaim",
        "nr_foll_pin_acquired",
        "nr_foll_pin_released",
    )
)
# The kernel gives these in KiB, the others below in pages.
_IN_KIB = frozenset(("nr_kernel_stack",))
_HELD: dict[str, Callable[[MemoryUse], int]] = {
    "nr_inactive_anon": lambda use: use.inactive_anon,
    "nr_active_anon": lambda use: use.active_anon,
    "nr_inactive_file": lambda use: use.inactive_file,
    "nr_active_file": lambda use: use.active_file,
    "nr_unevictable": lambda use: use.unevictable,
    "nr_zone_inactive_anon": lambda use: use.inactive_anon,
    "nr_zone_active_anon": lambda use: use.active_anon,
    "nr_zone_inactive_file": lambda use: use.inactive_file,
    "nr_zone_active_file": lambda use: use.active_file,
    "nr_zone_unevictable": lambda use: use.unevictable,
    "nr_zone_write_pending": lambda use: use.dirty + use.writeback,
    "nr_mlock": lambda use: use.unevictable,
    "nr_slab_reclaimable": lambda use: use.slab_reclaimable,
    "nr_slab_unreclaimable": lambda use: use.slab_unreclaimable,
    "nr_anon_pages": lambda use: use.anon,
    "nr_mapped": lambda use: use.mapped,
    "nr_file_pages": lambda use: use.file,
    "nr_dirty": lambda use: use.dirty,
    "nr_writeback": lambda use: use.writeback,
    "nr_shmem": lambda use: use.shmem,
    "nr_kernel_stack": lambda use: use.kernel_stack,
    "nr_page_table_pages": lambda use: use.page_tables,
    "nr_swapcached": lambda use: use.swap_cached,
}


class Vmstat:
    """/proc/vmstat of a box that began when the host's text was ``host``, with pages of ``page`` bytes."""

    def __init__(self, host: str, page: int) -> None:
        self._page = page
        self._began = _numbers(host)
        self._now = self._began

    def set_host(self, host: str) -> None:
        """Take the machine's own counters from the host's text."""
        self._now = _numbers(host)

    def render(self, use: MemoryUse, disks: Disks, *, free: int | None, swapped: bool) -> str:
        """The file's text. ``free`` bytes of memory, or None for a box that sees the machine's memory; ``swapped`` if
        there is swap that it could use.
        """
        # Never below 0: some counters of the kernel run backwards, as its CPUs are not read at one moment.
        values = {
            name: now if _is_now(name) else max(0, now - self._began.get(name, 0)) for name, now in self._now.items()
        }
        each = disks.values()
        own = {
            # In KiB, as mm/vmstat.c has them.
            "pgpgin": sum(disk.read_bytes for disk in each) >> 10,
            "pgpgout": sum(disk.written_bytes for disk in each) >> 10,
            "pgfault": use.faults,
            "pgmajfault": use.major_faults,
        }
        if free is not None:
            own |= {name: held(use) // (1024 if name in _IN_KIB else self._page) for name, held in _HELD.items()}
            own["nr_free_pages"] = free // self._page
            if not swapped:
                own |= {"pswpin": 0, "pswpout": 0}
        return "".join(f"{name} {own.get(name, value)}\n" for name, value in values.items())


def _numbers(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _is_now(name: str) -> bool:
    return name.startswith(_NOW) and name not in _COUNTED
