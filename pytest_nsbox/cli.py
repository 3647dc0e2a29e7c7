"""The command line `nsbox`: it finds the command, the modules behind do the work."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pytest_nsbox import image_commands
from pytest_nsbox.policy.errors import BadValueError, SandboxError, SpecProblems

if TYPE_CHECKING:
    from collections.abc import Sequence

_WITH_COMMAND = ("run", "exec")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: that of the program for `run` and `exec`, else 0; 1 for what went wrong
    (125 in `run` and `exec`), which is told on stderr; 2 for a wrong command line.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    after: list[str] = []
    if given[:1] and given[0] in _WITH_COMMAND and "--" in given:
        at = given.index("--")
        given, after = given[:at], given[at + 1 :]
    parser = argparse.ArgumentParser(prog="nsbox", description="Containers for tests, from the command line.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    image_commands.add_to(commands)
    if given[:1] != ["image"]:
        # The others bring pytest along.
        from pytest_nsbox import box_commands, house_commands, network_commands, run_commands

        for module in (run_commands, box_commands, network_commands, house_commands):
            module.add_to(commands)
    options = parser.parse_args(given, argparse.Namespace(command_after=after, failed=1))
    try:
        code: int = options.run(options)
    except (SandboxError, SpecProblems, BadValueError, ValueError) as error:
        print(f"nsbox: {error}", file=sys.stderr)
        failed: int = options.failed
        return failed
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        return 1
    except KeyboardInterrupt:
        return 130
    return code
