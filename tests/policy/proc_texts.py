"""Texts of /proc as real kernels write them."""

from __future__ import annotations

MEMINFO = """\
MemTotal:       24684092 kB
MemFree:        22583116 kB
MemAvailable:   23952216 kB
Buffers:           41844 kB
Cached:          1317420 kB
SwapCached:            0 kB
Active:           329264 kB
Inactive:        1100652 kB
Active(anon):      63720 kB
Inactive(anon):   196464 kB
Active(file):     265544 kB
Inactive(file):   904188 kB
Unevictable:       18116 kB
Mlocked:           17156 kB
SwapTotal:       1048572 kB
SwapFree:        1048572 kB
Dirty:              3092 kB
Writeback:            52 kB
AnonPages:         88868 kB
Mapped:           203436 kB
Shmem:            189528 kB
KReclaimable:     505052 kB
Slab:             560748 kB
SReclaimable:     505052 kB
SUnreclaim:        55696 kB
KernelStack:        1856 kB
PageTables:         3928 kB
NFS_Unstable:          0 kB
Bounce:                0 kB
WritebackTmp:          0 kB
CommitLimit:    13390616 kB
Committed_AS:     400184 kB
VmallocTotal:   34359738367 kB
VmallocUsed:       18868 kB
VmallocChunk:          0 kB
Percpu:             2536 kB
HardwareCorrupted:     0 kB
AnonHugePages:         0 kB
ShmemHugePages:        0 kB
ShmemPmdMapped:        0 kB
FileHugePages:         0 kB
FilePmdMapped:         0 kB
HugePages_Total:       4
HugePages_Free:        4
HugePages_Rsvd:        0
HugePages_Surp:        0
Hugepagesize:       2048 kB
Hugetlb:            8192 kB
DirectMap4k:       26624 kB
DirectMap2M:     2070528 kB
DirectMap1G:    25165824 kB
"""

STAT = """\
cpu  632423 7 741684 1332340 8823 0 2675 3924 0 0
cpu0 290925 3 366859 698565 2140 0 285 1972 0 0
cpu1 341497 4 374824 633775 6683 0 2389 1952 0 0
cpu2 1 0 1 700000 0 0 0 0 0 0
cpu3 0 0 0 700000 0 0 0 0 0 0
intr 46965385 0 0 25 0 1562447
ctxt 316611662
btime 1795229424
processes 684144
procs_running 4
procs_blocked 0
softirq 13243003 0 1216711 25597 47123 1562546 0 6 1636176 0 8754844
"""

VMSTAT = """\
nr_free_pages 5371060
nr_zone_write_pending 40
nr_anon_pages 31062
nr_file_pages 613000
nr_dirtied 5600100
nr_kernel_stack 3936
nr_page_table_pages 1100
numa_hit 900000000
pgpgin 27608093
pgpgout 52812096
pswpin 12
pswpout 34
pgfault 700000000
pgmajfault 7000
oom_kill 3
nr_unstable 0
"""

CPUINFO_X86 = "".join(
    f"processor\t: {number}\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nphysical id\t: {number // 4}\n"
    f"siblings\t: 4\ncore id\t\t: {number % 4 // 2}\ncpu cores\t: 2\nflags\t\t: fpu vme de\npower management:\n\n"
    for number in range(8)
)

CPUINFO_ARM = (
    "".join(
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n\n"
        for number in range(4)
    )
    + "Hardware\t: BCM2835\nRevision\t: c03111\n"
)

SWAPS = """\
Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/dm-1                               partition\t1048572\t\t1024\t\t-2
"""

DISKSTATS = """\
   7       0 loop0 66 0 132 5 66 0 44 84 0 84 129 0 0 0 0 66 38
 254       0 vda 925446 91590 23461026 1565225 250806 728750 53718320 728211 0 2317 2405514 939649 25 528 110 18558 1337
 259       1 nvme0n1 1 2 3 4 5 6 7 8 9 10 11
"""

MEMORY_V1 = {
    "memory.usage_in_bytes": "104857600\n",
    "memory.stat": """\
cache 1
rss 2
hierarchical_memory_limit 268435456
hierarchical_memsw_limit 268435456
total_cache 41943040
total_rss 52428800
total_rss_huge 2097152
total_shmem 1048576
total_mapped_file 4096
total_dirty 8192
total_writeback 0
total_swap 12288
total_swapcached 0
total_pgfault 400
total_pgmajfault 4
total_inactive_anon 50331648
total_active_anon 2097152
total_inactive_file 31457280
total_active_file 9437184
total_unevictable 0
""",
}

MEMORY_V2 = {
    "memory.current": "104857600\n",
    "memory.stat": """\
anon 52428800
file 41943040
kernel_stack 65536
pagetables 131072
percpu 3072
shmem 1048576
file_mapped 4096
file_dirty 8192
file_writeback 0
swapcached 0
anon_thp 2097152
file_thp 0
shmem_thp 0
inactive_anon 50331648
active_anon 2097152
inactive_file 31457280
active_file 9437184
unevictable 0
slab_reclaimable 1048576
slab_unreclaimable 524288
pgfault 400
pgmajfault 4
""",
    "memory.swap.current": "12288\n",
}
