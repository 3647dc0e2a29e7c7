"""`python -m tests.vm [--disk] [PYTEST ARGUMENTS | -- COMMAND]`: see tests/vm/boot.py."""

from __future__ import annotations

import signal
import sys

from tests.capabilities import is_required, missing
from tests.vm.boot import TMPDIR, run_in_vm


def main(arguments: list[str]) -> int:
    why = missing("vm kernel")
    if why is not None and not is_required("vm kernel"):
        print(f"skipped, nothing was run on cgroup v2: {why}")
        return 0
    disk = arguments[:1] == ["--disk"]
    if disk:
        arguments = arguments[1:]
    pytest_command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={TMPDIR}/cache", *arguments]
    return run_in_vm(arguments[1:] if arguments[:1] == ["--"] else pytest_command, disk=disk)


if __name__ == "__main__":
    # An end by `timeout` or by a CI's cancel button takes the disk away too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
