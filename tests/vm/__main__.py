"""`python -m tests.vm [--disk] [PYTEST ARGUMENTS | -- COMMAND]`: see tests/vm/boot.py."""

from __future__ import annotations

import sys

from tests.vm.boot import TMPDIR, run_in_vm

if __name__ == "__main__":
    disk = sys.argv[1:2] == ["--disk"]
    arguments = sys.argv[2:] if disk else sys.argv[1:]
    pytest_command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={TMPDIR}/cache", *arguments]
    sys.exit(run_in_vm(arguments[1:] if arguments[:1] == ["--"] else pytest_command, disk=disk))
