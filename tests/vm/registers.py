"""User-mode Linux on processors that have more registers than it has room for.

Debian's (6.1) keeps 2,696 bytes of its programs' registers: up to AVX-512 and protection keys. Where the processor has
more (AMX) it reads as many, and panics before its first program, since ptrace(2) writes back all of them or none
(EFAULT). So there it runs with a small library that adds what is missing (registers.S).

Source: arch/x86/um/os-Linux/registers.c and arch/x86/kernel/fpu/regset.c of the kernel, ptrace(2), ld.so(8).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

WIDER = frozenset(["amx_tile", "apx"])  # flags of /proc/cpuinfo
SOURCE = Path(__file__).with_name("registers.S")


def are_too_many(cpuinfo: str | None = None) -> bool:
    """Whether a processor, this machine's by default, has registers that user-mode Linux has no room for."""
    if cpuinfo is None:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return not WIDER.isdisjoint(flags.split())


def prefix(scratch: str) -> list[str]:
    """What a command line of user-mode Linux begins with on this machine; `scratch` is a directory to build in."""
    if not are_too_many():
        return []
    return ["env", f"LD_PRELOAD={build(scratch)}"]


def build(scratch: str) -> Path:
    """Make the library."""
    built, library = Path(scratch, "registers.o"), Path(scratch, "registers.so")
    subprocess.run(["as", "-o", built, SOURCE], check=True)
    subprocess.run(["ld", "-shared", "-z", "noexecstack", "-o", library, built], check=True)
    return library
