"""Root file systems from the definitions in rootfs-fixtures/, built when a test first wants one and kept for others."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

FIXTURES = Path(__file__).parents[1] / "rootfs-fixtures"


def place(name: str) -> Path:
    """Where the root that `name` describes is kept once it was built."""
    made_by = (FIXTURES / "build").read_bytes() + (FIXTURES / name / "packages").read_bytes()
    cache = Path(os.environ.get("NSBOX_ROOTFS_CACHE") or Path.home() / ".cache" / "pytest-nsbox-rootfs")
    return cache / f"{name}-{hashlib.sha256(made_by).hexdigest()[:12]}"


def rootfs(name: str) -> Path:
    """The root that `name` describes; tests must not change it. Needs "debian archive", and mmdebstrap for a system."""
    root = place(name)
    if root.is_dir():
        return root
    # Only here: this module is imported in containers too, which have no more of the host than what they need.
    from filelock import FileLock

    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / f"{name}.lock"):
        if not root.is_dir():
            aside = root.with_suffix(".new")
            if aside.exists():  # its builder was killed
                shutil.rmtree(aside)
            subprocess.run([FIXTURES / "build", name, aside], check=True, timeout=900)
            aside.rename(root)
    return root
