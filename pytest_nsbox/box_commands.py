"""Boxes that exist, from the command line: ps, logs, stop, kill, pause, unpause, rm, commit, inspect, stats."""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from pytest_nsbox import attach
from pytest_nsbox.columns import ago, columns
from pytest_nsbox.container import STOP_PATIENCE, signal_named
from pytest_nsbox.image_commands import describe
from pytest_nsbox.keeper import Line
from pytest_nsbox.policy import usage as usages
from pytest_nsbox.policy.errors import BadValueError, BoxFailed
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.policy.units import format_size
from pytest_nsbox.run_commands import noted
from pytest_nsbox.warden import roots
from pytest_nsbox.warden.engine import Engine
from pytest_nsbox.warden.output import split

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

_STATS = ("NAME", "CPU %", "MEM PEAK / LIMIT", "PIDS PEAK", "BLOCK I/O")
_SECOND = 1.0


def add_to(commands: Any) -> None:
    """Add the commands to an argparse parser's sub-parsers."""

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str, boxes: str = "+"
    ) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
        parser.set_defaults(run=run)
        if boxes:
            parser.add_argument("boxes", metavar="BOX", nargs=boxes)
        return parser

    listing = add("ps", _list, "list boxes", boxes="")
    listing.add_argument("-a", "--all", action="store_true", help="those that have exited as well")
    listing.add_argument("-q", "--quiet", action="store_true", help="names only")
    following = add("logs", _logs, "show what a box printed", boxes="")
    following.add_argument("-f", "--follow", action="store_true", help="go on until it has ended")
    following.add_argument("box", metavar="BOX")
    stopping = add("stop", _stop, "ask boxes to end (SIGTERM), then kill them")
    stopping.add_argument(
        "-t", "--time", type=float, default=STOP_PATIENCE, metavar="SECONDS", help="until they are killed"
    )
    killing = add("kill", _kill, "kill boxes, or send them a signal")
    killing.add_argument("-s", "--signal", default="KILL", metavar="SIGNAL", help="a name or a number")
    add("pause", _each("pause"), "freeze all processes of boxes")
    add("unpause", _each("resume"), "let them go on")
    removing = add("rm", _remove, "remove boxes with all that they wrote")
    removing.add_argument("-f", "--force", action="store_true", help="kill those that run")
    keeping = add("commit", _commit, "keep what a box wrote as an image; prints the id", boxes="")
    keeping.add_argument("box", metavar="BOX")
    keeping.add_argument("image", metavar="NAME[:TAG]", nargs="?")
    keeping.add_argument("--no-pause", action="store_true", help="let its processes run meanwhile")
    showing = add("inspect", _inspect, "show boxes or images as JSON", boxes="")
    showing.add_argument("names", metavar="NAME", nargs="+")
    watching = add("stats", _stats, "show what boxes use", boxes="*")
    watching.add_argument("--no-stream", action="store_true", help="once")


class _Warden:
    """A command's way to boxes that exist. Without a keeper there are none."""

    def __enter__(self) -> Engine | None:
        self._line = Line()
        sock = self._line.find()
        self._engine = Engine(sock) if sock is not None else None
        return self._engine

    def __exit__(self, *_: object) -> None:
        if self._engine is not None:
            self._engine.close()
        self._line.close()


def _need(engine: Engine | None, name: str) -> Engine:
    if engine is None:
        raise BoxFailed(f"there is no box {name!r}")
    return engine


def _for_each(names: list[str], act: Callable[[Engine, str], object]) -> int:
    """Do `act` for every box, and print its name; what fails is told, and the others are done all the same."""
    failed = 0
    with _Warden() as engine:
        for name in names:
            try:
                act(_need(engine, name), name)
                print(name)
            except BoxFailed as error:
                print(f"nsbox: {error}", file=sys.stderr)
                failed = 1
    return failed


def _each(what: str) -> Callable[[argparse.Namespace], int]:
    return lambda options: _for_each(options.boxes, lambda engine, name: engine.ask(what, box=name))


def _list(options: argparse.Namespace) -> int:
    rows = [("NAME", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS")]
    with _Warden() as engine:
        boxes = engine.ask("list", all=True)[0] if engine is not None else []
    for box in boxes:
        if box["status"] == "exited" and not options.all:
            continue
        note = box["note"]
        command = " ".join(note["command"])
        created = f"{ago(time.time() - note['created'])} ago"
        ports = ", ".join(f"127.0.0.1:{host}->{port}" for port, host in box.get("ports", {}).items())
        shown = command if len(command) <= 40 else f"{command[:39]}…"
        rows.append((box["name"], box["id"], note["image"] or "<host>", shown, created, _status(box), ports))
    for line in [row[0] for row in rows[1:]] if options.quiet else columns(rows):
        print(line)
    return 0


def _status(box: dict[str, Any]) -> str:
    if box["status"] == "exited":
        code = box["returncode"]
        return f"Exited ({code if code >= 0 else 128 - code}) {ago(box['since'] - box['wall'])} ago"
    return f"Up {ago(box['wall'])}{' (Paused)' if box['status'] == 'paused' else ''}"


def _logs(options: argparse.Namespace) -> int:
    with _Warden() as engine:
        asked = _need(engine, options.box)
        if options.follow:
            attach.follow(asked, options.box)
            return 0
        attach.show(split(asked.ask("logs", box=options.box)[1]))
    return 0


def _stop(options: argparse.Namespace) -> int:
    def stop(engine: Engine, name: str) -> None:
        engine.ask("stop", box=name, seconds=options.time, **noted(engine, name)["note"]["stop"])

    return _for_each(options.boxes, stop)


def _kill(options: argparse.Namespace) -> int:
    number = _signal(options.signal)
    if number == signal.SIGKILL:
        return _for_each(options.boxes, lambda engine, name: engine.ask("kill", box=name))
    return _for_each(options.boxes, lambda engine, name: engine.ask("signal", box=name, signal=number))


def _signal(text: str) -> int:
    if text.isdigit() and 0 < int(text) < signal.NSIG:
        return int(text)
    try:
        return signal_named(text)
    except KeyError:
        raise BadValueError(f"-s {text}: not a signal", "a name such as HUP, or a number") from None


def _remove(options: argparse.Namespace) -> int:
    def remove(engine: Engine, name: str) -> None:
        if not options.force and engine.ask("state", box=name)[0]["status"] != "exited":
            raise BoxFailed(f"the box {name!r} runs: stop it first, or rm -f")
        engine.ask("remove", box=name)

    return _for_each(options.boxes, remove)


def _commit(options: argparse.Namespace) -> int:
    with _Warden() as engine:
        asked = _need(engine, options.box)
        base = noted(asked, options.box)["note"]["base"]
        print(roots.told(roots.commit(asked, options.box, base, name=options.image, pause=not options.no_pause)).id)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    found = []
    with _Warden() as engine:
        for name in options.names:
            box = _inspect_box(engine, name)
            try:
                found.append(box if box is not None else describe(name))
            except BoxFailed as error:
                raise BoxFailed(f"there is no box {name!r}, and {error}") from None
    print(json.dumps(found, indent=4))
    return 0


def _inspect_box(engine: Engine | None, name: str) -> dict[str, Any] | None:
    if engine is None:
        return None
    try:
        inspected: dict[str, Any] = engine.ask("inspect", box=name)[0]
    except BoxFailed:
        return None
    return inspected


def _stats(options: argparse.Namespace) -> int:
    with _Warden() as engine:
        if engine is None:
            for name in options.boxes:
                _need(engine, name)
            print("\n".join(columns([_STATS])))
            return 0
        before = _read_usage(engine, options.boxes)
        while True:
            time.sleep(_SECOND)
            now = _read_usage(engine, options.boxes)
            rows = [_STATS, *(_row(name, before[name], now[name]) for name in now if name in before)]
            if sys.stdout.isatty() and not options.no_stream:
                print("\033[H\033[J", end="")
            print("\n".join(columns(rows)), flush=True)
            if options.no_stream or not now:
                return 0
            before = now


def _read_usage(engine: Engine, names: list[str]) -> dict[str, tuple[float, usages.Usage]]:
    found = {}
    running = [box for box in engine.ask("list", all=True)[0] if box["status"] in ("running", "paused")]
    for box in [noted(engine, name) for name in names] or running:
        value, _ = engine.ask("usage", box=box["name"])
        spec = Spec.from_json(box["note"]["spec"])
        used = usages.complete(usages.parse(value["counters"]), spec, wall_s=value["wall"])
        found[box["name"]] = (time.monotonic(), used)
    return found


def _row(name: str, before: tuple[float, usages.Usage], now: tuple[float, usages.Usage]) -> tuple[str, ...]:
    def size(key: str, other: str) -> str:
        return format_size(now[1][key]) if key in now[1] else other

    share = "-"
    if "cpu_s" in now[1]:
        share = f"{100 * (now[1]['cpu_s'] - before[1].get('cpu_s', 0)) / (now[0] - before[0]):.1f}"
    memory = f"{size('memory_peak_bytes', '-')} / {size('memory_limit_bytes', 'none')}"
    read_and_written = f"{size('io_read_bytes', '-')} / {size('io_write_bytes', '-')}"
    return name, share, memory, str(now[1].get("pids_peak", "-")), read_and_written
