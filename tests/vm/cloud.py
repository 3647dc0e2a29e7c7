"""A virtual machine in QEMU's software emulation with Debian's kernel for clouds: what user-mode-linux lacks.

That is two CPUs, the cpuset and hugetlb controllers, pressure figures and time namespaces. Nothing of
the processor is needed for it. The kernel's package is downloaded once and unpacked in the user's cache directory, not
installed. Its disk driver is a module, so an initramfs loads that and goes on to the disk.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.vm.disk import copy, libraries, link_usr, make_disk, pack_initramfs

EMULATOR = "qemu-system-x86_64"
PACKAGE = "linux-image-cloud-amd64"
DISK_MODULES = ("virtio_pci", "virtio_blk")
MODULES = ("overlay", "veth", "bridge", "dummy", "loop", "sch_tbf", "sch_netem", "nft_tproxy")
HUGE_PAGES = 8  # of 2 MB
FIRST = """#!{busybox} sh
for module in {modules}; do {busybox} insmod /modules/$module.ko; done
{busybox} mount -t devtmpfs dev /dev
{busybox} mount -t ext4 /dev/vda /disk
{busybox} umount /dev
exec {busybox} switch_root /disk /init
"""


class Kernel(NamedTuple):
    """``modules``: a directory with the modules that the machine loads, and their modules.dep."""

    release: str
    image: Path
    modules: Path


def command_line(scratch: str, memory: str, files: Mapping[str, str | Path]) -> list[str] | None:
    """The command that starts the machine, with a disk of `make_disk`; None, and why on stderr, without QEMU."""
    emulator, busybox = shutil.which(EMULATOR), shutil.which("busybox")
    if emulator is None or busybox is None:
        print(f"no program {EMULATOR} or busybox on PATH: apt-get install qemu-system-x86 busybox", file=sys.stderr)
        return None
    kernel = cloud_kernel()
    disk = make_disk(scratch, {**files, f"/usr/lib/modules/{kernel.release}": kernel.modules})
    return [
        emulator,
        # rdrand: so early in a machine there is no other randomness, and Python wants some.
        *("-accel", "tcg,thread=multi,tb-size=256", "-cpu", "qemu64,+rdrand", "-smp", "2", "-m", memory),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(kernel.image), "-initrd", str(first_root(Path(scratch), kernel, busybox))),
        *("-append", f"console=ttyS0 loglevel=1 panic=-1 mitigations=off hugepages={HUGE_PAGES}"),
        # Where no room is left for its disk QEMU would stop the machine, for somebody to make room and go on.
        *("-drive", f"if=none,id=disk,format=raw,cache=unsafe,werror=report,file={disk}"),
        *("-device", "virtio-blk-pci,drive=disk"),
    ]


def first_root(scratch: Path, kernel: Kernel, busybox: str) -> Path:
    """The initramfs that mounts the disk."""
    root = scratch / "first"
    for name in ("dev", "disk", "modules"):
        (root / name).mkdir(parents=True)
    link_usr(root)
    copy([busybox, *libraries([busybox])], root)
    names = in_order(DISK_MODULES, dependencies(kernel.modules))
    for name in names:
        shutil.copy(kernel.modules / f"{name}.ko", root / "modules")
    (root / "init").write_text(FIRST.format(busybox=busybox, modules=" ".join(names)), encoding="utf-8")
    (root / "init").chmod(0o755)
    archive = pack_initramfs(root, scratch / "first.cpio")
    shutil.rmtree(root)
    return archive


def dependencies(modules: Path) -> dict[str, list[str]]:
    lines = (modules / "modules.dep").read_text(encoding="utf-8").splitlines()
    pairs = (line.replace(".ko", "").partition(":") for line in lines)
    return {name: needed.split() for name, _, needed in pairs}


def in_order(names: Iterable[str], needed: Mapping[str, Iterable[str]]) -> list[str]:
    """`names` and what they need, each after what it needs itself."""
    found: dict[str, None] = {}
    for name in names:
        found.update(dict.fromkeys([*in_order(needed[name], needed), name]))
    return list(found)


def cloud_kernel() -> Kernel:
    """Debian's newest when this was first asked for: some 30 MB from the archive, of which 15 are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pytest-nsbox", "cloud-kernel")
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="half-", dir=cache.parent) as half:
            download(Path(half))
            (Path(half) / "kernel").rename(cache)
    release = (cache / "release").read_text(encoding="utf-8")
    return Kernel(release, cache / "vmlinuz", cache / "modules")


def download(place: Path) -> None:
    """Leaves in `place`/kernel what a Kernel is made of."""
    said = subprocess.run(
        ["apt-cache", "--no-all-versions", "show", PACKAGE], capture_output=True, text=True, check=True
    ).stdout
    named = re.search(r"^Depends:.*?linux-image-(\S+)", said, re.MULTILINE)
    assert named is not None, said
    release = named[1]
    package = f"linux-image-{release}"
    # By root as well: apt's own user could not write here.
    apt = ["apt-get", "--quiet", "--quiet", "--option", "APT::Sandbox::User=root"]
    subprocess.run([*apt, "download", package], cwd=place, check=True)
    subprocess.run(["dpkg-deb", "--extract", *place.glob("*.deb"), place / "package"], check=True)
    kernel = place / "kernel"
    (kernel / "modules").mkdir(parents=True)
    shutil.move(place / "package" / "boot" / f"vmlinuz-{release}", kernel / "vmlinuz")
    files = {path.stem.replace("-", "_"): path for path in (place / "package").rglob("*.ko")}
    needed = {name: needs(path) for name, path in files.items()}
    names = in_order((*DISK_MODULES, *MODULES), needed)
    for name in names:
        shutil.move(files[name], kernel / "modules" / f"{name}.ko")
    # Of the form that depmod(8) gives it.
    lines = "".join(f"{name}.ko:{''.join(f' {other}.ko' for other in needed[name])}\n" for name in names)
    (kernel / "modules" / "modules.dep").write_text(lines, encoding="utf-8")
    (kernel / "release").write_text(release, encoding="utf-8")


def needs(module: Path) -> list[str]:
    """The modules that it uses the symbols of, as its section .modinfo names them."""
    found = re.search(rb"\0depends=([^\0]*)\0", module.read_bytes())
    return found[1].decode().replace("-", "_").split(",") if found is not None and found[1] else []
