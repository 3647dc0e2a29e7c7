"""`python -m tests.vm [PYTEST ARGUMENTS | -- COMMAND]`: see tests/vm/boot.py."""

from __future__ import annotations

import sys

from tests.vm.boot import TMPDIR, run_in_vm

if __name__ == "__main__":
    arguments = sys.argv[1:]
    pytest_command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={TMPDIR}/cache", *arguments]
    sys.exit(run_in_vm(arguments[1:] if arguments[:1] == ["--"] else pytest_command))
