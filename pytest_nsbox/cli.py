"""The command line `nsbox`: it finds the command, the modules behind do the work."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pytest_nsbox import image_commands
from pytest_nsbox.policy.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 1 for what went wrong (told on stderr), 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="nsbox", description="Containers for tests, from the command line.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    image_commands.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except SandboxError as error:
        print(f"nsbox: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        return 1
    return code
