"""Whether sysinfo(2) can be answered in boxes with ``proc="limits"``, for the run's first lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1])\n"
    "from pytest_nsbox.kernel.listener import listen\n"
    "from pytest_nsbox.policy.errors import KernelError\n"
    "try: listen()\n"
    "except KernelError as error: print(error.errno, error)"
)
_BUSY = "16 "  # EBUSY


def notes() -> list[str]:
    """What to tell the user: nothing where it works. Where no filter is in force around us, it does."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    if "\nSeccomp:\t0\n" in status:
        return []
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(Path(__file__).parent.parent)]
    try:
        # A process of its own: a filter is for ever.
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if not said:
        return []
    if said.startswith(_BUSY):
        return ["sandbox: sysinfo(2) tells the limits of the box around this one: only the outermost can answer it"]
    return [f"sandbox: sysinfo(2) tells the machine's memory in boxes with proc='limits': {said.partition(' ')[2]}"]
