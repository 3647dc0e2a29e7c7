"""`nsbox volume`, `nsbox doctor` and `nsbox gc`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import tempfile
from contextlib import closing
from typing import TYPE_CHECKING, Any

from pytest_nsbox.columns import columns
from pytest_nsbox.image_commands import sweep_images
from pytest_nsbox.keeper import Line
from pytest_nsbox.places import CGROUP_PARENT, volumes_directory
from pytest_nsbox.policy.errors import BadValueError, BoxFailed
from pytest_nsbox.policy.networks import is_word
from pytest_nsbox.warden.engine import Engine

if TYPE_CHECKING:
    import argparse


def add_to(commands: Any) -> None:
    """Add the commands to an argparse parser's sub-parsers."""
    parser = commands.add_parser("volume", help="named volumes that outlive sessions")
    own = parser.add_subparsers(dest="volume_command", required=True, metavar="COMMAND")
    making = own.add_parser("create", help="make a volume; tests and boxes mount it as NAME:DST")
    making.add_argument("name", metavar="NAME", nargs="?")
    making.set_defaults(run=_create)
    listing = own.add_parser("ls", help="list the volumes")
    listing.add_argument("-q", "--quiet", action="store_true", help="names only")
    listing.set_defaults(run=_list)
    for name, run, text in (("inspect", _inspect, "show volumes as JSON"), ("rm", _remove, "remove volumes")):
        each = own.add_parser(name, help=text)
        each.add_argument("names", metavar="NAME", nargs="+")
        each.set_defaults(run=run)
    commands.add_parser("doctor", help="what works here, why the rest does not, and the fix").set_defaults(run=_doctor)
    cleaning = commands.add_parser("gc", help="remove what killed sessions left, and layers that no image has")
    cleaning.add_argument("-a", "--all", action="store_true", help="boxes that have exited as well")
    cleaning.set_defaults(run=_collect)


def _create(options: argparse.Namespace) -> int:
    name = options.name or os.urandom(16).hex()
    make_volume(name)
    print(name)
    return 0


def make_volume(name: str) -> None:
    """Make a volume, unless it is there. Raises BadValueError for what is no name."""
    if not is_word(name):
        raise BadValueError(f"volume {name!r}: not a name", "letters, digits and _ . - after the first")
    try:
        os.makedirs(volumes_directory(), 0o700, exist_ok=True)
        path = os.path.join(volumes_directory(), name)
        if not os.path.isdir(path):
            os.mkdir(path)
            os.chmod(path, 0o755)
    except OSError as error:
        raise BoxFailed(f"{error.filename}: {os.strerror(error.errno or 0)}") from None


def _names() -> list[str]:
    try:
        return sorted(name for name in os.listdir(volumes_directory()) if not name.startswith("."))
    except FileNotFoundError:
        return []


def _place(name: str) -> str:
    if name not in _names():
        raise BoxFailed(f"there is no volume {name!r}")
    return os.path.join(volumes_directory(), name)


def _list(options: argparse.Namespace) -> int:
    rows = [("NAME", "MOUNTPOINT"), *((name, _place(name)) for name in _names())]
    for line in _names() if options.quiet else columns(rows):
        print(line)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    print(json.dumps([{"Name": name, "Mountpoint": _place(name)} for name in options.names], indent=4))
    return 0


def _remove(options: argparse.Namespace) -> int:
    for name in options.names:
        path = _place(name)
        _release(name)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = os.path.join(volumes_directory(), f".{os.urandom(6).hex()}")
            os.rename(path, gone)
        except BlockingIOError:
            raise BoxFailed(f"the volume {name!r} is in use by a run of pytest") from None
        finally:
            os.close(fd)
        shutil.rmtree(gone)
        print(name)
    return 0


def _release(name: str) -> None:
    """Have the keeper let go of a volume. Raises BoxFailed if one of its boxes uses it."""
    with closing(Line()) as line:
        sock = line.find()
        if sock is None:
            return
        with closing(Engine(sock)) as engine:
            engine.ask("remove_volume", name=name, release=True)


def _doctor(_options: argparse.Namespace) -> int:
    from pytest_nsbox import doctor
    from pytest_nsbox.options import Settings

    seen = doctor.survey(Settings(cgroup_parent=os.environ.get(CGROUP_PARENT) or None))
    for line in doctor.tell(seen):
        print(line)
    return 0 if seen.works else 1


def _collect(options: argparse.Namespace) -> int:
    from pytest_nsbox.warden import directory

    with closing(Line()) as line:
        sock = line.find()
        if sock is not None:
            with closing(Engine(sock)) as engine:
                for box in engine.ask("list", all=True)[0] if options.all else ():
                    if box["status"] == "exited":
                        engine.ask("remove", box=box["name"])
            line.end()
    sweep_images()
    problems = directory.sweep(tempfile.gettempdir())
    for name in os.listdir(volumes_directory()) if os.path.isdir(volumes_directory()) else ():
        if name.startswith("."):
            shutil.rmtree(os.path.join(volumes_directory(), name), ignore_errors=True)
    for problem in problems:
        print(f"nsbox: {problem}", file=sys.stderr)
    return 1 if problems else 0
