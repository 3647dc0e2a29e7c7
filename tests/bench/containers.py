"""What containers cost, beside crun, bubblewrap and tar, in interleaved rounds: `python -m tests.bench.containers`.

As root, with crun and bubblewrap installed. Where cgroup v1 and v2 are mixed, crun refuses to run before the v2 mount
has been taken away (`unshare -m`). The root is the host's for all three; crun gets it as an overlay that was mounted
before, which is not counted.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pytest_nsbox.images.store import Store
from pytest_nsbox.nsbox import NsBox
from pytest_nsbox.warden.client import SessionConfig, Warden

ROUNDS = 40
PARALLEL = 50
IMPORTED = 200 << 20
BWRAP = ("bwrap", "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all", "true")


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def show(title: str, seconds: list[float]) -> None:
    print(f"{title:32} median {statistics.median(seconds) * 1e3:7.1f} ms   least {min(seconds) * 1e3:7.1f} ms")


def make_bundle(base: Path) -> Path:
    """A bundle of crun's whose root is an overlay over the host's."""
    bundle = base / "bundle"
    for name in ("upper", "work", "bundle/rootfs"):
        (base / name).mkdir(parents=True)
    subprocess.run(["crun", "spec"], cwd=bundle, check=True)
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": ["true"]}
    spec["root"] = {"path": str(bundle / "rootfs"), "readonly": False}
    spec["linux"].pop("resources", None)
    # Where cgroup v1 is mounted by hand, crun can do nothing with it.
    spec["linux"]["namespaces"] = [kind for kind in spec["linux"]["namespaces"] if kind["type"] != "cgroup"]
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"]
    (bundle / "config.json").write_text(json.dumps(spec))
    options = f"lowerdir=/,upperdir={base}/upper,workdir={base}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, bundle / "rootfs"], check=True)
    return bundle


def compare_one(boxes: NsBox, bundle: Path) -> None:
    """One program that does nothing, one after the other."""
    number = iter(range(1_000_000))

    def crun() -> None:
        subprocess.run(
            ["crun", "--cgroup-manager=cgroupfs", "run", "-b", bundle, f"bench-{os.getpid()}-{next(number)}"],
            check=True,
        )

    ways: dict[str, Callable[[], object]] = {
        "crun run": crun,
        "bwrap": lambda: subprocess.run(BWRAP, check=True),
        "nsbox.run": lambda: boxes.run(["true"], check=True),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 3):
        for name, work in ways.items():
            seconds = timed(work)
            if turn >= 3:
                found[name].append(seconds)
    for name, seconds_of in found.items():
        show(name, seconds_of)


def compare_many(boxes: NsBox) -> None:
    """Fifty at once."""

    def ours() -> None:
        with ThreadPoolExecutor(PARALLEL) as pool:
            for result in pool.map(lambda _: boxes.run(["true"]), range(PARALLEL)):
                assert result.returncode == 0

    def theirs() -> None:
        for process in [subprocess.Popen(BWRAP) for _ in range(PARALLEL)]:
            assert process.wait() == 0

    ours()
    rounds = [(timed(ours), timed(theirs)) for _ in range(8)]
    show(f"{PARALLEL} nsbox.run", [ours for ours, _ in rounds])
    show(f"{PARALLEL} bwrap", [theirs for _, theirs in rounds])


def compare_import(base: Path) -> None:
    """An image of some large and many small files."""
    root = base / "root"
    for directory in range(50):
        (root / f"d{directory}").mkdir(parents=True)
        for file in range(100):
            (root / f"d{directory}/f{file}").write_bytes(os.urandom(IMPORTED // 10_000))
    for large in range(10):
        (root / f"large{large}").write_bytes(os.urandom(IMPORTED // 20))
    archive = base / "image.tar"
    subprocess.run(["tar", "-c", "-f", archive, "-C", root, "."], check=True)
    shutil.rmtree(root)
    found: dict[str, list[float]] = {"tar -x": [], "image import": [], "its second use": []}
    for turn in range(3):
        out, store = base / f"out{turn}", Store(str(base / f"store{turn}"))
        out.mkdir()
        ways: tuple[Callable[[], object], ...] = (
            partial(subprocess.run, ["tar", "-x", "-f", archive, "-C", out], check=True),
            partial(store.add, str(archive), "bench"),
            partial(store.find, str(archive), "/"),
        )
        for seconds, work in zip(found.values(), ways, strict=True):
            seconds.append(timed(work))
        shutil.rmtree(out)
        shutil.rmtree(store.path)
    for name, seconds in found.items():
        show(name, seconds)


def main(wanted: list[str]) -> None:
    base = Path(tempfile.mkdtemp(prefix="nsbox-bench-", dir="/var/tmp"))
    warden = Warden.start(SessionConfig(cgroup_parent=os.environ.get("PYTEST_NSBOX_CGROUP_PARENT")))
    boxes = NsBox(warden.connect, "/")
    try:
        if not wanted or "one" in wanted:
            bundle = make_bundle(base)
            try:
                compare_one(boxes, bundle)
            finally:
                subprocess.run(["umount", bundle / "rootfs"], check=True)
        if not wanted or "many" in wanted:
            compare_many(boxes)
        if not wanted or "import" in wanted:
            compare_import(base)
    finally:
        boxes.close()
        warden.close()
        shutil.rmtree(base)


if __name__ == "__main__":
    main(sys.argv[1:])
