"""struct sysinfo as its callers read it."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox.policy.sysinfo import SysInfo

SIZES = st.integers(0, 1 << 43)
INFOS = st.builds(
    SysInfo,
    uptime=st.integers(0, 2**31 - 1),
    loads=st.tuples(*[st.integers(0, 2**32 - 1)] * 3),
    total_ram=SIZES, free_ram=SIZES, shared_ram=SIZES, buffer_ram=SIZES, total_swap=SIZES, free_swap=SIZES,
    procs=st.integers(0, 10**6),
)  # fmt: skip


@given(INFOS)
def test_programs_of_64_bits_get_bytes(info: SysInfo):
    data = info.pack(narrow=False)
    # As the compiler lays it out: @ is the machine's own alignment.
    fields = struct.unpack("@l3L6LHH2LI", data[: struct.calcsize("@l3L6LHH2LI")])
    assert len(data) == struct.calcsize("@l3L6LHH2LI0L") == 112
    assert fields[:4] == (info.uptime, *info.loads)
    assert fields[4:10] == (
        info.total_ram, info.free_ram, info.shared_ram, info.buffer_ram, info.total_swap, info.free_swap,
    )  # fmt: skip
    assert fields[10:] == (min(info.procs, 65535), 0, 0, 0, 1)


@given(INFOS)
def test_programs_of_32_bits_get_pages_where_bytes_do_not_fit(info: SysInfo):
    data = info.pack(narrow=True)
    assert len(data) == 64
    fields = struct.unpack("=i3I6IHH2I I", data[:56])
    unit = fields[-1]
    assert unit in (1, 4096)
    assert (unit == 1) == all(size < 2**32 for size in (info.total_ram, info.free_ram, info.shared_ram,
                                                        info.buffer_ram, info.total_swap, info.free_swap))  # fmt: skip
    assert fields[4] == info.total_ram // unit
