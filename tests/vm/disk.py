"""A root for the virtual machine with the little of this machine that the tests run: an ext4, or an initramfs.

hostfs cannot be idmapped, and where people have cgroup v2 the root is mostly an ext4: only on a disk do boxes in the
machine get their shifted ids. It takes some seconds to build, and what a test does to it is gone with the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

# Debian packages whose files the tests and the plugin's suites call; what is not installed here is left out.
PACKAGES = (
    *("base-files", "base-passwd", "bash", "coreutils", "dash", "e2fsprogs", "findutils", "grep", "gzip"),
    *("hostname", "iproute2", "less", "libc-bin", "login", "mawk", "mount", "ncurses-base", "netbase", "passwd"),
    *("procps", "sed", "tar", "tzdata", "uidmap", "util-linux", "util-linux-extra"),
)
# With NSBOX_RUNTIMES=1, for `tox -e runtimes`.
RUNTIMES = ("openjdk-17-jre-headless", "nodejs", "htop", "busybox", "busybox-static")
EMPTY = ("dev", "home", "mnt", "proc", "run", "srv", "sys", "tmp", "usr/bin", "usr/lib", "usr/sbin", "var/tmp")
STANDARD_LIBRARY_NEEDLESS = frozenset({"site-packages", "dist-packages", "test", "idlelib", "ensurepip"})
# And what other environments of tox may be writing just now.
CHECKOUT_NEEDLESS = frozenset(
    {".git", ".tox", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", "__pycache__", "site"}
)


def make_disk(scratch: str, more: Mapping[str, str | Path], size: str = "4G") -> Path:
    """The image of a disk in `scratch` with the files of `make_root`, which is gone then."""
    root = make_root(scratch, more)
    image = Path(scratch, "disk")
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, image, size],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PATH": search},
    )
    shutil.rmtree(root)
    return image


def make_initramfs(scratch: str, more: Mapping[str, str | Path]) -> Path:
    """An archive in `scratch` with the files of `make_root`, which is gone then."""
    root = make_root(scratch, more)
    archive = pack_initramfs(root, Path(scratch, "initramfs"))
    shutil.rmtree(root)
    return archive


def pack_initramfs(root: Path, archive: Path) -> Path:
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with open(archive, "wb") as file:
        subprocess.run(
            ["busybox", "cpio", "-o", "-H", "newc"],
            input=names.encode(),
            stdout=file,
            stderr=subprocess.PIPE,
            cwd=root,
            check=True,
        )
    return archive


def make_root(scratch: str, more: Mapping[str, str | Path]) -> Path:
    """A directory in `scratch`: programs, the interpreter and the checkout at their own paths.

    `more` are programs to write, and directories to copy, besides: {path: text or directory}.
    """
    root = Path(scratch, "root")
    for path in EMPTY:
        (root / path).mkdir(parents=True)
    link_usr(root)
    paths = [*packaged_files(), *tree(Path("/etc")), *interpreter(), *tree(Path.cwd(), CHECKOUT_NEEDLESS)]
    copy(paths, root)
    copy(libraries(paths), root)
    for path, content in more.items():
        target = root / path.lstrip("/")
        if isinstance(content, Path):
            shutil.copytree(content, target, symlinks=True, dirs_exist_ok=True)
        else:
            target.write_text(content, encoding="utf-8")
            target.chmod(0o755)
    for folder in ("tmp", "var/tmp"):
        (root / folder).chmod(0o1777)
    return root


def link_usr(root: Path) -> None:
    """/bin and /lib lead below /usr where they do so on this machine."""
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if Path("/", name).is_symlink():
            (root / name).symlink_to(os.readlink(f"/{name}").lstrip("/"))
            (root / name).resolve().mkdir(parents=True, exist_ok=True)


def packaged_files() -> Iterator[str]:
    packages = (*PACKAGES, *(RUNTIMES if os.environ.get("NSBOX_RUNTIMES") == "1" else ()))
    done = subprocess.run(["dpkg-query", "-L", *packages], capture_output=True, text=True, check=False)
    needless = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/usr/share/info/")
    files = {line for line in done.stdout.splitlines() if line.startswith("/") and not line.startswith(needless)}
    yield from sorted(files)
    # Links that no package holds: awk to mawk, by way of /etc/alternatives.
    real = {os.path.realpath(file) for file in files}
    yield from (str(link) for link in Path("/usr/bin").iterdir() if link.is_symlink() and str(link.resolve()) in real)


def interpreter() -> Iterator[str]:
    yield from tree(Path(sysconfig.get_path("stdlib")), STANDARD_LIBRARY_NEEDLESS)
    yield from tree(Path(sys.base_prefix, "bin") if sys.base_prefix != "/usr" else Path(sys.executable))
    yield os.path.realpath(sys.executable)
    # The one that an ordinary user can start, when ours lies where only root may go.
    system = shutil.which("python3", path=os.defpath)
    if system is not None and os.path.realpath(system) != os.path.realpath(sys.executable):
        where = "import sysconfig; print(sysconfig.get_path('stdlib'))"
        done = subprocess.run([system, "-I", "-c", where], capture_output=True, text=True, check=True)
        yield from (system, os.path.realpath(system))
        yield from tree(Path(done.stdout.strip()), STANDARD_LIBRARY_NEEDLESS)
    if sys.prefix != sys.base_prefix:
        yield from tree(Path(sys.prefix))
    else:
        yield from tree(Path(sysconfig.get_path("purelib")))


def tree(top: Path, without: frozenset[str] = frozenset()) -> Iterator[str]:
    yield str(top)
    for folder, names, files in os.walk(top):
        names[:] = [name for name in names if name not in without]
        yield from (f"{folder}/{name}" for name in (*names, *files))


def libraries(paths: Iterable[str]) -> Iterator[str]:
    """The shared libraries that programs and extension modules among `paths` are linked with, and their real files."""
    programs = {
        os.path.realpath(path)
        for path in paths
        if (path.rpartition("/")[0].endswith("bin") or ".so" in path) and os.path.isfile(path)
    }
    done = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    for word in set(done.stdout.split()):
        if word.startswith("/") and not word.endswith(":"):
            yield os.path.normpath(word)
            yield os.path.realpath(word)
    # Looked up by name at run time: users and hosts.
    for name in ("libnss_files", "libnss_dns", "libresolv", "libgcc_s"):
        yield from (str(path) for path in Path(f"/lib/{os.uname().machine}-linux-gnu").glob(f"{name}*"))


def copy(paths: Iterable[str], root: Path) -> None:
    there = [path for path in paths if os.path.lexists(path)]
    # With the folders above, for their modes.
    above = {str(folder) for path in there for folder in Path(path).parents}
    listed = "\0".join(dict.fromkeys(path.lstrip("/") for path in (*sorted(above - {"/"}), *there)))
    options = ["--directory=/", "--no-recursion", "--null", "--files-from=-", "--ignore-failed-read", "--warning=none"]
    packed = subprocess.Popen(["tar", "--create", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with (
        packed,
        subprocess.Popen(
            ["tar", "--extract", "--keep-directory-symlink", f"--directory={root}"], stdin=packed.stdout
        ) as unpacked,
    ):
        assert packed.stdin is not None
        assert packed.stdout is not None
        packed.stdout.close()
        packed.stdin.write(listed.encode(errors="surrogateescape"))
        packed.stdin.close()
    if packed.returncode or unpacked.returncode:
        raise RuntimeError(f"tar ended with {packed.returncode} and {unpacked.returncode}")
