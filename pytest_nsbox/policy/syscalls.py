"""The system calls that containers are refused, as Docker's default profile has them, and their numbers.

Source: "Seccomp security profiles for Docker" (docs.docker.com) for which and why; the kernel's asm/unistd*.h.
"""

from __future__ import annotations

# {name: numbers on x86_64, on i386, and on machines with the generic table (aarch64, riscv64, loongarch64)}
NUMBERS: dict[str, tuple[int | None, int | None, int | None]] = {
    "acct": (163, 51, 89),
    "add_key": (248, 286, 217),
    "bpf": (321, 357, 280),
    "clock_settime": (227, 264, 112),
    "clock_settime64": (None, 404, None),
    "clone": (56, 120, 220),
    "clone3": (435, 435, 435),
    "create_module": (174, 127, None),
    "delete_module": (176, 129, 106),
    "fanotify_init": (300, 338, 262),
    "finit_module": (313, 350, 273),
    "fsconfig": (431, 431, 431),
    "fsmount": (432, 432, 432),
    "fsopen": (430, 430, 430),
    "fspick": (433, 433, 433),
    "get_kernel_syms": (177, 130, None),
    "get_mempolicy": (239, 275, 236),
    "init_module": (175, 128, 105),
    "io_uring_enter": (426, 426, 426),
    "io_uring_register": (427, 427, 427),
    "io_uring_setup": (425, 425, 425),
    "ioperm": (173, 101, None),
    "iopl": (172, 110, None),
    "kcmp": (312, 349, 272),
    "kexec_file_load": (320, None, 294),
    "kexec_load": (246, 283, 104),
    "keyctl": (250, 288, 219),
    "lookup_dcookie": (212, 253, 18),
    "mbind": (237, 274, 235),
    "mount": (165, 21, 40),
    "mount_setattr": (442, 442, 442),
    "move_mount": (429, 429, 429),
    "move_pages": (279, 317, 239),
    "nfsservctl": (180, 169, 42),
    "open_by_handle_at": (304, 342, 265),
    "open_tree": (428, 428, 428),
    "perf_event_open": (298, 336, 241),
    "personality": (135, 136, 92),
    "pidfd_getfd": (438, 438, 438),
    "pivot_root": (155, 217, 41),
    "query_module": (178, 167, None),
    "quotactl": (179, 131, 60),
    "quotactl_fd": (443, 443, 443),
    "reboot": (169, 88, 142),
    "request_key": (249, 287, 218),
    "set_mempolicy": (238, 276, 237),
    "set_mempolicy_home_node": (450, 450, 450),
    "setdomainname": (171, 121, 162),
    "sethostname": (170, 74, 161),
    "setns": (308, 346, 268),
    "settimeofday": (164, 79, 170),
    "socket": (41, 359, 198),
    "socketcall": (None, 102, None),
    "stime": (None, 25, None),
    "swapoff": (168, 115, 225),
    "swapon": (167, 87, 224),
    "sysfs": (139, 135, None),
    "_sysctl": (156, 149, None),
    "syslog": (103, 103, 116),
    "umount": (None, 22, None),
    "umount2": (166, 52, 39),
    "unshare": (272, 310, 97),
    "uselib": (134, 86, None),
    "userfaultfd": (323, 374, 282),
    "ustat": (136, 62, None),
    "vhangup": (153, 111, 58),
    "vm86": (None, 166, None),
    "vm86old": (None, 113, None),
    "open_tree_attr": (467, 467, 467),
}
# The last that this table has looked at, the same on all: of a newer one it is not known what it can do.
LAST = 469

# {the capability that the kernel asks for: what is refused without it}
_UNLOCKED = {
    "sys_admin": (
        *("bpf", "fanotify_init", "lookup_dcookie", "perf_event_open", "quotactl", "quotactl_fd", "syslog"),
        *("mount", "umount", "umount2", "mount_setattr", "move_mount", "open_tree", "open_tree_attr", "pivot_root"),
        *("fsconfig", "fsmount", "fsopen", "fspick", "setdomainname", "sethostname", "setns", "unshare"),
    ),
    "bpf": ("bpf",),
    "perfmon": ("perf_event_open",),
    "syslog": ("syslog",),
    "sys_boot": ("reboot", "kexec_load", "kexec_file_load"),
    "sys_module": ("init_module", "finit_module", "delete_module"),
    "sys_nice": ("get_mempolicy", "mbind", "move_pages", "set_mempolicy", "set_mempolicy_home_node"),
    "sys_pacct": ("acct",),
    "sys_ptrace": ("kcmp", "pidfd_getfd"),
    "sys_rawio": ("ioperm", "iopl"),
    "sys_time": ("clock_settime", "clock_settime64", "settimeofday", "stime"),
    "sys_tty_config": ("vhangup",),
    "dac_read_search": ("open_by_handle_at",),
}
# What no capability gives back: not namespaced, obsolete, or a large part of the kernel for few programs.
_NEVER = (
    *("add_key", "keyctl", "request_key", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("swapon", "swapoff", "nfsservctl", "uselib", "ustat", "sysfs", "_sysctl", "vm86", "vm86old"),
    *("create_module", "get_kernel_syms", "query_module"),
)
# (clone, clone3, personality and socket are allowed with some arguments; kernel/call_filter.py has which.)


def refused(capabilities: frozenset[str]) -> tuple[str, ...]:
    """The names of the calls that a container with these capabilities is refused, whatever their arguments."""
    allowed = {name for capability in capabilities for name in _UNLOCKED.get(capability, ())}
    locked = {name for names in _UNLOCKED.values() for name in names}
    return tuple(sorted((locked - allowed) | set(_NEVER)))
