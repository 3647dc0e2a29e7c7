"""The answer of sysinfo(2) as bytes, for callers with words of 64 and of 32 bits. Source: include/uapi/linux/sysinfo.h,
kernel/sys.c.
"""

from __future__ import annotations

import struct

from pytest_nsbox.policy.record import record

# Uptime, three loads, total, free, shared and buffer memory, total and free swap, number of processes, padding, total
# and free high memory, unit; the narrow one ends with 8 bytes of padding, the wide one with none but the compiler's.
_WIDE = struct.Struct("=q9QHHIQQII")
_NARROW = struct.Struct("=i9IHHIII8x")
_PAGE = 4096


@record
class SysInfo:
    """Seconds since the start, load averages times 65536, bytes of memory and swap, and the number of processes."""

    uptime: int
    loads: tuple[int, int, int]
    total_ram: int
    free_ram: int
    shared_ram: int
    buffer_ram: int
    total_swap: int
    free_swap: int
    procs: int

    def pack(self, *, narrow: bool) -> bytes:
        """struct sysinfo in the machine's byte order. Sizes that do not fit 32 bits are given in larger units."""
        sizes = (
            self.total_ram,
            self.free_ram,
            self.shared_ram,
            self.buffer_ram,
            self.total_swap,
            self.free_swap,
        )
        procs = min(self.procs, 0xFFFF)
        if not narrow:
            return _WIDE.pack(self.uptime, *self.loads, *sizes, procs, 0, 0, 0, 0, 1, 0)
        unit = 1
        if max(sizes) >> 32:
            unit = _PAGE
        scaled = [min(size // unit, 0xFFFFFFFF) for size in sizes]
        return _NARROW.pack(self.uptime, *self.loads, *scaled, procs, 0, 0, 0, unit)
