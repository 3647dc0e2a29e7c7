"""A Debian with systemd in the virtual machine: for what only a manager of cgroups shows.

    python -m tests.vm.system "runuser -u tester -- pytest-3 …"

The root is made by mmdebstrap once and kept as a tar in the user's cache directory; the disk of each machine has it,
the modules of its kernel, and of this machine the plugin, pytest and what they import. Commands run one after the other
in a service of the system, so in a group that is not theirs; ordinary users `tester` (lingering, so with a manager of
their own) and `stranger` (with none) are there.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.vm.boot import BEGIN, END, KERNEL, MODULES, follow, start, user_mode_linux

PACKAGES = ("systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "kmod", "procps", "python3")
SUITE = "bookworm"
# What nobody here reads, and what would only be copied to each machine's disk.
NEEDLESS = ("doc", "info", "lintian", "locale", "man", "zoneinfo")
IMPORTED = (
    "_pytest",
    "pytest",
    "py",
    "pluggy",
    "iniconfig",
    "packaging",
    "pygments",
    "filelock",
    "pyroute2",
    "pytest_nsbox",
)
PLACE = "/opt/nsbox"
MARK = "--- status of command "
USERS = {"tester": 1000, "stranger": 1001}
# Debian's own pytest would be an old one.
RUN = f"""#!/bin/sh
cd {PLACE}/suite
export PYTHONPATH={PLACE}/packages TMPDIR=/var/tmp COLUMNS=120 NO_COLOR=1
exec python3 -m pytest -p pytest_nsbox.plugin -p no:cacheprovider "$@"
"""
UNIT = f"""[Unit]
After=dbus.socket systemd-logind.service
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 {PLACE}/commands.py
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
[Install]
WantedBy=multi-user.target
"""
COMMANDS = f"""
import json, subprocess, time
print({BEGIN!r}, flush=True)
for user in ("tester",):
    subprocess.run(["loginctl", "enable-linger", user])
for attempt in range(300):
    if subprocess.run(["test", "-S", "/run/user/1000/bus"]).returncode == 0:
        break
    time.sleep(0.1)
for number, command in enumerate(json.load(open("{PLACE}/commands.json"))):
    status = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL).returncode
    print("{MARK}%d: %d" % (number, status), flush=True)
print({END!r} + "0", flush=True)
"""


class Done(NamedTuple):
    status: int
    text: str


def run_on_systemd(commands: Sequence[str], files: Mapping[str, str], *, timeout: float = 300.0) -> list[Done]:
    """What each of `commands` (of the shell, as root, in a directory with `files`) ended with and said."""
    kernel = shutil.which(KERNEL)
    assert kernel is not None, f"no program {KERNEL}"
    with tempfile.TemporaryDirectory(prefix="nsbvm-") as scratch:
        disk = make_disk(Path(scratch), commands, files)
        options = (f"ubd0={disk}", "root=/dev/ubda", "rw", "quiet", "systemd.show_status=0")
        said = io.StringIO()
        with redirect_stdout(said):
            status = follow(start(user_mode_linux(kernel, "1500M", scratch, options)), 180, timeout)
    text = said.getvalue()
    assert status == 0, f"the machine ended with {status}:\n{text}"
    found = []
    for number in range(len(commands)):
        before, _, text = text.partition(f"{MARK}{number}: ")
        line, _, text = text.partition("\n")
        found.append(Done(int(line), before))
    return found


def make_disk(scratch: Path, commands: Sequence[str], files: Mapping[str, str]) -> Path:
    root = scratch / "root"
    root.mkdir()
    subprocess.run(
        ["tar", "--extract", "--file", system_archive(), "--directory", root, "--exclude=./dev/*"], check=True
    )
    place = root / PLACE.lstrip("/")
    for name in IMPORTED:
        copy_package(name, place / "packages")
    # It asks for its own version.
    information = Path(str(importlib.metadata.distribution("pluggy").locate_file("")))
    for found in information.glob("pluggy-*.dist-info"):
        shutil.copytree(found, place / "packages" / found.name)
    release = next(Path(MODULES).iterdir()).name
    shutil.copytree(Path(MODULES, release), root / "usr/lib/modules" / release)
    for name, uid in USERS.items():
        with open(root / "etc/passwd", "a", encoding="utf-8") as file:
            file.write(f"{name}:x:{uid}:{uid}::/home/{name}:/bin/sh\n")
        with open(root / "etc/group", "a", encoding="utf-8") as file:
            file.write(f"{name}:x:{uid}:\n")
        with open(root / "etc/shadow", "a", encoding="utf-8") as file:
            file.write(f"{name}:*:19000:0:99999:7:::\n")
        home = root / "home" / name
        home.mkdir(parents=True)
        os.chown(home, uid, uid)
    texts = {
        f"{PLACE}/commands.py": COMMANDS,
        f"{PLACE}/commands.json": json.dumps(list(commands)),
        f"{PLACE}/suite/pytest.ini": "[pytest]\n",
        **{f"{PLACE}/suite/{name}": text for name, text in files.items()},
        "/usr/local/bin/run-pytest": RUN,
        "/etc/systemd/system/nsbox-commands.service": UNIT,
        "/etc/modules-load.d/nsbox.conf": "overlay\n",
        "/etc/fstab": "",
        "/etc/hostname": "nsbox-vm\n",
    }
    for path, text in texts.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    (root / "usr/local/bin/run-pytest").chmod(0o755)
    (place / "suite").chmod(0o777)
    wanted = root / "etc/systemd/system/multi-user.target.wants"
    wanted.mkdir(parents=True, exist_ok=True)
    (wanted / "nsbox-commands.service").symlink_to("../nsbox-commands.service")
    image = scratch / "disk"
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    options = ["-q", "-t", "ext4", "-O", "^has_journal", "-d", str(root), str(image), "3G"]
    subprocess.run(["mke2fs", *options], check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PATH": search})
    shutil.rmtree(root)
    return image


def copy_package(name: str, target: Path) -> None:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return
    source = Path(spec.origin)
    target.mkdir(parents=True, exist_ok=True)
    if source.name == "__init__.py":
        shutil.copytree(source.parent, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def system_archive() -> Path:
    """The tar of a Debian with systemd: made once, some 40 s and 150 MB."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pytest-nsbox")
    archive = cache / f"{SUITE}-systemd-small.tar"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        half = cache / f"{archive.name}.{os.getpid()}.tar"
        options = ["--quiet", "--variant=essential", f"--include={','.join(PACKAGES)}"]
        options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in NEEDLESS]
        subprocess.run(["mmdebstrap", *options, SUITE, str(half)], check=True)
        half.rename(archive)
    return archive


if __name__ == "__main__":
    for done in run_on_systemd(sys.argv[1:], {}):
        print(done.text + f"[status {done.status}]")
