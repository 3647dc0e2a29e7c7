"""`python -m tests.vm [--disk | --initramfs | --qemu] [PYTEST ARGUMENTS | -- COMMAND]`: see tests/vm/boot.py."""

from __future__ import annotations

import os
import signal
import sys

from tests.capabilities import is_required, missing
from tests.vm.boot import ROOTS, TMPDIR, run_in_vm


def main(arguments: list[str]) -> int:
    root = "hostfs"
    if arguments and arguments[0].removeprefix("--") in ROOTS:
        root = arguments.pop(0).removeprefix("--")
    kernel = "vm qemu" if root == "qemu" else "vm kernel"
    if root == "qemu":
        os.environ["NSBOX_QEMU"] = "1"
    why = missing(kernel)
    if why is not None and not is_required(kernel):
        print(f"skipped, nothing was run on cgroup v2: {why}")
        return 0
    pytest_command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={TMPDIR}/cache", *arguments]
    return run_in_vm(arguments[1:] if arguments[:1] == ["--"] else pytest_command, root=root)


if __name__ == "__main__":
    # An end by `timeout` or by a CI's cancel button takes the disk away too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
