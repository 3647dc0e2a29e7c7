"""Runs the whole test suite of click, as released, with each test in a box of its own. `tox -e demo` calls it.

The suite comes from the source distribution of the very version that is installed; pytest runs it with limits on
memory, CPU and processes, and without a network.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

PROJECT = "click"
LIMITS = ("mem=256M", "cpu=100%", "pids=64", "net=false")


def download(where: Path) -> Path:
    """The unpacked source distribution of the installed release."""
    pinned = f"{PROJECT}=={version(PROJECT)}"
    print(f"downloading the source of {pinned} ...", flush=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--quiet", "download", "--no-deps"),
            *("--no-binary", PROJECT, "--dest", str(where), pinned),
        ],
        check=True,
    )
    archive = next(where.glob("*.tar.gz"))
    with tarfile.open(archive) as file:
        # Python 3.10.11 and 3.11.3 and older have no extraction filters.
        file.extractall(where, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # type: ignore[arg-type]
    return next(path for path in where.iterdir() if path.is_dir())


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="nsbox-demo-") as scratch:
        source = download(Path(scratch))
        options = [word for limit in LIMITS for word in ("--sandbox-set", limit)]
        command = ["pytest", "-q", "--sandbox-all", *options, *sys.argv[1:]]
        if shutil.which("less") is None:
            print("less is not installed: the tests of the pager that run it are left out", flush=True)
            command += ["-k", "not (test_echo_via_pager and less)"]
        print("$", *command, flush=True)
        return subprocess.run([sys.executable, "-m", *command], cwd=source, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
