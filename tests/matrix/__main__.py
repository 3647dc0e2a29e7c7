"""``python -m tests.matrix``: runs the rows and writes the page."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.matrix import page
from tests.matrix.row import Row
from tests.matrix.running import Compared, compare
from tests.matrix.sections import SECTIONS


def main() -> int:
    """Run what the command line asks for; 1 when a row is not what it should be."""
    arguments = _arguments()
    rows = [row for section in SECTIONS for row in section.rows if arguments.only in f"{section.title}: {row.feature}"]
    with tempfile.TemporaryDirectory(prefix="nsbox-matrix-") as scratch:
        paths: dict[str, list[str]] = {pytest.__version__: []}
        for requirement in arguments.also:
            version, path = _install(requirement, Path(scratch))
            paths[version] = [path]
        results: page.Results = {version: {} for version in paths}
        bad = 0
        for version, row in ((version, row) for row in rows for version in paths):
            if page.applies(row, version):
                where = Path(scratch) / "run"
                results[version][row.feature] = compared = compare(row, where, paths[version])
                shutil.rmtree(where)
                bad += _tell(row, version, compared)
    if not (arguments.only or bad):
        page.PATH.write_text(page.render(results), encoding="utf-8")
    print(f"{len(rows)} rows, {bad} not as they should be")
    return int(bool(bad))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose title contains it; the page stays")
    parser.add_argument("--also", action="append", default=[], metavar="REQUIREMENT", help="another pytest, for pip")
    return parser.parse_args()


def _install(requirement: str, scratch: Path) -> tuple[str, str]:
    """Another pytest in a directory of its own, to go before the installed one: its version and the path."""
    where = scratch / "pytest-also"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(where), requirement]
    subprocess.run(pip, check=True)
    asks = [sys.executable, "-c", "import pytest; print(pytest.__version__)"]
    version = subprocess.run(asks, env={"PYTHONPATH": str(where)}, check=True, capture_output=True, text=True).stdout
    return version.strip(), str(where)


def _tell(row: Row, version: str, compared: Compared) -> int:
    """Print one line, and below it why the row is wrong, if it is."""
    differing = [way for way, lines in compared.found.items() if lines]
    lines = [compared.problem] if compared.problem else []
    told = row.differs if row.reason else ()
    lines += [line for way in differing if way not in told for line in compared.found[way]]
    if row.reason and not differing:
        lines.append("it is the same, though a reason is given why it cannot be")
    state = "WRONG" if lines else ("differs as told" if differing else "same")
    print(f"pytest {version}  {state:<16} {row.feature}: {', '.join(differing) or compared.counts}", flush=True)
    for line in lines:
        print(f"    {line}", flush=True)
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
