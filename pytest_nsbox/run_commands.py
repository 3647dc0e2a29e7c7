"""`nsbox run` and `nsbox exec`: programs in boxes."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import closing
from typing import Any

from pytest_nsbox import attach
from pytest_nsbox.container import Origin, arguments, environment
from pytest_nsbox.house_commands import make_volume
from pytest_nsbox.keeper import Line
from pytest_nsbox.network import read_publish
from pytest_nsbox.nsbox import NsBox
from pytest_nsbox.options import read_value
from pytest_nsbox.policy import docker
from pytest_nsbox.policy.errors import BadValueError
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden.engine import Engine

# What went wrong was not the program: as Docker's.
FAILED = 125


def add_to(commands: Any) -> None:
    """Add the commands to an argparse parser's sub-parsers."""
    usage = "nsbox run [options] [IMAGE] -- COMMAND [ARGUMENT...]"
    parser = commands.add_parser("run", help="start a box", usage=usage)
    option = parser.add_argument
    option("-d", "--detach", action="store_true", help="print its name and leave it running")
    option("-i", "--interactive", action="store_true", help="it reads our standard input")
    option("-t", "--tty", action="store_true", help="it has a terminal: ours")
    option("--rm", action="store_true", help="remove it when it has ended")
    option("--name", metavar="NAME")
    for short, name, metavar, text in _ONCE:
        option(*filter(None, (short, name)), metavar=metavar, help=text)
    for short, name, metavar, text in _REPEATED:
        option(*filter(None, (short, name)), action="append", metavar=metavar, help=text)
    option("--read-only", action="store_true", help="no writable layer")
    option("--privileged", action="store_true", help="no user namespace")
    option("--set", action="append", metavar="KEY=VALUE", help="any key of the sandbox marker")
    option("words", nargs=argparse.REMAINDER, metavar="IMAGE", help="default: the host's root, copy-on-write")
    parser.set_defaults(run=_run, failed=FAILED)
    parser = commands.add_parser(
        "exec", help="run one more program in a box", usage="nsbox exec [options] BOX COMMAND..."
    )
    option = parser.add_argument
    option("-i", "--interactive", action="store_true", help="it reads our standard input")
    option("-t", "--tty", action="store_true", help="it has a terminal: ours")
    option("-e", "--env", action="append", metavar="NAME[=VALUE]")
    option("-u", "--user", metavar="USER")
    option("-w", "--workdir", metavar="DIRECTORY")
    option("words", nargs=argparse.REMAINDER, metavar="BOX")
    parser.set_defaults(run=_exec, failed=FAILED)


_ONCE = (
    ("-m", "--memory", "SIZE", "limit of memory"),
    ("", "--memory-swap", "SIZE", "limit of memory and swap together"),
    ("", "--cpus", "CPUS", "limit of CPU time, such as 0.5"),
    ("", "--cpu-period", "MICROSECONDS", "period of that limit"),
    ("", "--cpu-quota", "MICROSECONDS", "CPU time in each period"),
    ("", "--cpu-shares", "SHARES", "relative weight"),
    ("", "--cpuset-cpus", "CPUS", "CPUs that it may run on, such as 0-1,3"),
    ("", "--pids-limit", "COUNT", "limit of processes and threads"),
    ("", "--net", "none|host|NAME|container:NAME", "default: the host's network"),
    ("", "--hostname", "NAME", ""),
    ("-u", "--user", "USER", "a name, UID or UID:GID"),
    ("-w", "--workdir", "DIRECTORY", ""),
)
_REPEATED = (
    ("-v", "--volume", "SRC:DST[:ro]", "a path (with / or . in front) or a named volume"),
    ("", "--mount", docker.MOUNT, ""),
    ("", "--tmpfs", "DST[:size=SIZE]", ""),
    (
        "-p",
        "--publish",
        "[HOST PORT:]BOX PORT",
        "the box's port answers on 127.0.0.1, without HOST PORT on any free one",
    ),
    ("-e", "--env", "NAME[=VALUE]", ""),
    ("", "--ulimit", "NAME=SOFT[:HARD]", ""),
)


def _run(options: argparse.Namespace) -> int:
    words, command = options.words, options.command_after
    if not command and len(words) > 1:
        words, command = words[:1], words[1:]
    if len(words) > 1:
        raise BadValueError(f"{' '.join(words)}: more than one image", "[IMAGE] -- COMMAND [ARGUMENT...]")
    if options.tty and options.detach:
        raise BadValueError("-t with -d: nobody could type into that terminal", "one of them")
    line = Line()
    boxes = NsBox(line.connect, os.getcwd())
    fields = _order(boxes, options, words[0] if words else None, command)
    with closing(line), closing(boxes.engine):
        # With a terminal of the box it reads that.
        fds = (0,) if options.interactive and not options.tty and not options.detach else ()
        terminal = attach.Terminal() if options.tty else None
        engine = boxes.engine
        fds = (terminal.theirs,) if terminal is not None else fds
        state, _ = engine.ask("start", fds, **fields, terminal=terminal is not None, detached=True)
        if "not_started" in state:
            return _not_started(state)
        name = state["name"]
        if options.detach:
            print(name)
            return 0
        if terminal is not None:
            terminal.serve()
        else:
            attach.follow_with_signals(engine, name)
        code = _code(engine.ask("wait", box=name)[0]["returncode"])
        if options.rm:
            engine.ask("remove", box=name)
        return code


def _order(boxes: NsBox, options: argparse.Namespace, image: str | None, command: list[str]) -> dict[str, Any]:
    """What the warden is told of the box, and what it tells later commands."""
    keys = docker.read_options(vars(options), os.environ)
    joined: dict[str, Any] = {}
    net = keys.get("net")
    if isinstance(net, str) and net.startswith("container:"):
        joined["joined"] = net.partition(":")[2]
        del keys["net"]
    for text in options.set or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise BadValueError(f"--set {text}: no value", "KEY=VALUE")
        keys[key] = read_value(key, value)
    if options.publish:
        joined["publish"] = read_publish(options.publish, keys, joined)
    if image is not None:
        keys["rootfs"] = image
    spec, found = boxes.read_image(boxes.spec("nsbox run", keys))
    for volume in spec.volumes:
        if volume.kind == "volume":
            # As in Docker it outlives the box.
            make_volume(volume.source)
    if not command and found is None:
        raise BadValueError("nothing to run: no command was given", "[IMAGE] -- COMMAND [ARGUMENT...]")
    given = arguments(command, found)
    origin = Origin(tuple(given), found)
    note = {
        "image": image or "",
        "command": given,
        "base": origin.base(spec),
        "stop": origin.stop_signal(),
        "spec": spec.to_json(),
        "created": time.time(),
    }
    return {**boxes.fields(given, spec, found, options.name), **joined, "note": note}


def _exec(options: argparse.Namespace) -> int:
    name, command = "".join(options.words[:1]), [*options.words[1:], *options.command_after]
    if not command:
        raise BadValueError("no command was given", "BOX COMMAND [ARGUMENT...]")
    with closing(Line()) as line, closing(Engine(line.connect())) as engine:
        note = noted(engine, name)["note"]
        spec = Spec.from_json(note["spec"])
        env = docker.read_options({"env": options.env}, os.environ).get("env") or {}
        terminal = attach.Terminal() if options.tty else None
        nothing = os.open(os.devnull, os.O_RDONLY)
        streams = (0 if options.interactive else nothing, 1, 2)
        number = engine.tell(
            "exec",
            (terminal.theirs,) if terminal is not None else streams,
            box=name,
            argv=command,
            env=environment({**dict(spec.env), **env}),  # type: ignore[dict-item]  # read_options' env is one
            user=options.user or spec.user,
            workdir=options.workdir or spec.workdir,
            timeout=None,
            terminal=terminal is not None,
        )
        os.close(nothing)
        if terminal is not None:
            terminal.serve()
        value, _ = engine.answer(number)
        return _not_started(value) if "not_started" in value else _code(value["returncode"])


def noted(engine: Engine, name: str) -> dict[str, Any]:
    """What is known of a box. Raises BoxFailed if there is none."""
    for box in engine.ask("list", all=True)[0]:
        if name in (box["name"], box["id"]):
            found: dict[str, Any] = box
            return found
    engine.ask("state", box=name)
    return {}


def _code(returncode: int) -> int:
    """As a shell tells it."""
    return returncode if returncode >= 0 else 128 - returncode


def _not_started(value: dict[str, Any]) -> int:
    print(f"nsbox: {value['not_started']}", file=sys.stderr)
    code: int = value["returncode"]
    return code
