"""The page that shows the results."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from tests.matrix.row import Row
from tests.matrix.running import WAYS, Compared
from tests.matrix.sections import SECTIONS

PATH = Path(__file__).parents[2] / "docs" / "reference" / "matrix.md"

Results = dict[str, dict[str, Compared]]  # pytest's version -> feature -> what was found

HEAD = """\
<!-- made by: python -m tests.matrix -->
# What works in boxes: the matrix

Each row is a small suite that uses one feature. `tox -e matrix` runs it twice, with plain pytest and with
`--sandbox-all`, and compares:

- **outcomes**: of every phase of every test, in order;
- **counts**: the numbers of the last line;
- **exit code** of pytest;
- **report**: everything that reporters hear (texts, sections, warnings, properties, their order), the terminal line
  by line, and the files that are written, such as `junit.xml`. Left out are times, paths and the `sandbox.` properties.

The last column is all of it on an older pytest.

Run on {versions}; Python {python}, with {plugins}.
"""


def applies(row: Row, version: str) -> bool:
    """Whether that pytest has the feature."""
    return not row.at_least or _numbers(version) >= _numbers(row.at_least)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def render(results: Results) -> str:
    """The whole page, as Markdown."""
    first, *others = results
    lines = [_head(results)]
    reasons: list[str] = []
    for section in SECTIONS:
        heads = ["Feature", *(way.capitalize() for way in WAYS), *(f"pytest {version}" for version in others)]
        lines += [f"## {section.title}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for row in section.rows:
            if row.reason and row.reason not in reasons:
                reasons.append(row.reason)
            number = reasons.index(row.reason) + 1 if row.reason else 0
            cells = [_cell(row, way, results[first], number) for way in WAYS]
            cells += [_cell_of(row, version, results[version], number) for version in others]
            lines.append(f"| {_escaped(row.feature)} | {' | '.join(cells)} |")
        lines.append("")
    if reasons:
        lines += ["## Reasons", "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)), ""]
    return "\n".join(lines)


def _head(results: Results) -> str:
    import platform

    names = ("xdist", "cov", "timeout", "rerunfailures", "asyncio", "trio", "mock", "randomly", "benchmark", "django")
    versions = [f"pytest {version}" for version in results]
    plugins = [f"pytest-{name} {metadata.version(f'pytest-{name}')}" for name in names]
    plugins += [f"{name} {metadata.version(name)}" for name in ("coverage", "hypothesis", "anyio", "pyfakefs")]
    return HEAD.format(versions=" and ".join(versions), python=platform.python_version(), plugins=", ".join(plugins))


def _cell(row: Row, way: str, found: Mapping[str, Compared], number: int) -> str:
    """ "same", or where it differs and the number of the reason."""
    compared = found[row.feature]
    if compared.found[way]:
        return f"differs: [reason {number}](#reasons)"
    return f"same: {compared.counts}" if way == "counts" else "same"


def _cell_of(row: Row, version: str, found: Mapping[str, Compared], number: int) -> str:
    """All ways in one cell, for another pytest."""
    if not applies(row, version):
        return f"since pytest {row.at_least}"
    differing = [way for way, lines in found[row.feature].found.items() if lines]
    return f"differs ({', '.join(differing)}): [reason {number}](#reasons)" if differing else "same"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


__all__ = ["PATH", "Mapping", "Results", "applies", "render"]
