"""`nsbox network`: create, ls, inspect, rm."""

from __future__ import annotations

import json
import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

from pytest_nsbox import network
from pytest_nsbox.columns import columns
from pytest_nsbox.keeper import Line
from pytest_nsbox.nsbox import NsBox
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.warden.engine import Engine

if TYPE_CHECKING:
    import argparse


def add_to(commands: Any) -> None:
    """Add the commands to an argparse parser's sub-parsers."""
    parser = commands.add_parser("network", help="networks of boxes")
    own = parser.add_subparsers(dest="network_command", required=True, metavar="COMMAND")
    making = own.add_parser("create", help="make a network; `run --net NAME` takes it")
    making.add_argument("name", metavar="NAME")
    making.add_argument("--subnet", action="append", metavar="CIDR", help="default: what nobody uses")
    # Docker's flag takes its value in the same word only.
    making.add_argument(
        "--internal=false", action="store_false", dest="internal", help="with a way out, to what the host reaches"
    )
    making.add_argument("--internal", "--internal=true", action="store_true", default=True, help="the default")
    making.add_argument("--rate", metavar="RATE", help="how much reaches each box at most, such as 10mbit")
    making.add_argument("--delay", metavar="TIME", help="of what goes to a box, such as 50ms")
    making.add_argument("--loss", metavar="SHARE", help="how much gets lost, such as 5%%")
    making.set_defaults(run=_create)
    listing = own.add_parser("ls", help="list the networks")
    listing.add_argument("-q", "--quiet", action="store_true", help="names only")
    listing.set_defaults(run=_list)
    for name, run, text in (("inspect", _inspect, "show networks as JSON"), ("rm", _remove, "remove networks")):
        each = own.add_parser(name, help=text)
        each.add_argument("names", metavar="NAME", nargs="+")
        each.set_defaults(run=run)


def _create(options: argparse.Namespace) -> int:
    line = Line()
    boxes = NsBox(line.connect, os.getcwd())
    shape = {"rate": options.rate, "delay": options.delay, "loss": options.loss}
    with closing(line), closing(boxes.engine):
        _, made = network.make(
            boxes, options.name, subnet=options.subnet, internal=options.internal, detached=True, **shape
        )
    if not made:
        raise BoxFailed(f"there is a network {options.name!r} already")
    print(options.name)
    return 0


def _all() -> list[dict[str, Any]]:
    with closing(Line()) as line:
        sock = line.find()
        if sock is None:
            return []
        with closing(Engine(sock)) as engine:
            found: list[dict[str, Any]] = engine.ask("networks")[0]
            return found


def _list(options: argparse.Namespace) -> int:
    found = _all()
    rows = [("NAME", "SUBNETS", "BOXES")]
    rows += [(each["Name"], " ".join(each["Subnets"]), " ".join(sorted(each["Containers"]))) for each in found]
    for row in [row[0] for row in rows[1:]] if options.quiet else columns(rows):
        print(row)
    return 0


def _find(names: list[str]) -> list[dict[str, Any]]:
    """The networks of these names. Raises BoxFailed if one is missing."""
    found = {each["Name"]: each for each in _all()}
    for name in names:
        if name not in found:
            raise BoxFailed(f"there is no network {name!r}")
    return [found[name] for name in names]


def _inspect(options: argparse.Namespace) -> int:
    print(json.dumps(_find(options.names), indent=4))
    return 0


def _remove(options: argparse.Namespace) -> int:
    _find(options.names)
    with closing(Line()) as line, closing(Engine(line.connect())) as engine:
        for name in options.names:
            engine.ask("network", what="remove", name=name)
            print(name)
    return 0
