"""The report page: one file that needs nothing else, from no network, and that shows everything without its script.

All that a test can have a say in (its name, its messages) is text, and never markup. The style and the script lie
beside this module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files

from pytest_nsbox.policy import table
from pytest_nsbox.policy.record import keyword_record
from pytest_nsbox.policy.table import Column, short_bytes
from pytest_nsbox.policy.units import format_size

# The worst first: what a reader looks for.
OUTCOMES = ("failed", "error", "interrupted", "rerun", "xpassed", "xfailed", "skipped", "passed")
COLUMNS = (
    *table.COLUMNS,
    Column("read", "io_read_bytes", short_bytes, 1, zero_tells=False),
    Column("written", "io_write_bytes", short_bytes, 1, zero_tells=False),
)
MEANINGS = {
    "wall_s": "time in the box, from the fork to the end of teardown",
    "cpu_s": "CPU time of everything in the box",
    "cpu_throttled_s": "time that the box waited because its cpu was used up",
    "memory_peak_bytes": "highest memory use, page cache included; the bar is its share of the limit",
    "memory_limit_bytes": "mem",
    "pids_peak": "highest number of processes and threads",
    "files_changed": "paths added, changed or deleted in the root",
    "oom_kills": "processes that the kernel killed for lack of memory",
    "io_read_bytes": "bytes read from block devices",
    "io_write_bytes": "bytes written to block devices",
}
NEAR = 0.9  # of its memory limit: a test that used more deserves a look
# A browser shows what is here and asks nobody for more, whatever a message holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@keyword_record
class Entry:
    """One row.

    ``limits``: marker keys in the marker's own spelling; ``usage``: as in ``--sandbox-json``, {} for a test without a
    box; ``texts``: (title, text) of what the test has to tell, such as how it failed.
    """

    nodeid: str
    outcome: str
    limits: Mapping[str, object]
    usage: Mapping[str, float]
    texts: Sequence[tuple[str, str]] = ()


@keyword_record
class Page:
    """What is on it.

    ``name`` of the project, ``when`` the run began, as a text, ``about``: lines on what boxes are made of, ``host``:
    as in ``--sandbox-json``.
    """

    name: str
    when: str
    about: Sequence[str]
    host: Mapping[str, object]
    tests: Sequence[Entry]


def render(page: Page) -> str:
    """The page as HTML."""
    title = f"Sandbox report: {page.name}"
    boxed = [(test.nodeid, test.usage) for test in page.tests if test.usage]
    columns = [column for column in COLUMNS if table.tells(column, boxed)]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_beside('page.css')}</style>",
            "</head>",
            "<body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{escape(page.when)}. {escape(table.totals(boxed))}.</p>",
            *_host(page),
            *_filters(page.tests),
            *_table(_ordered(page.tests), columns),
            f"<script>\n{_beside('page.js')}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _beside(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _host(page: Page) -> Iterable[str]:
    yield "<details class=host><summary>Machine</summary>"
    yield from (f"<p>{escape(line.removeprefix('sandbox: '))}</p>" for line in page.about)
    yield "<dl>"
    for key, value in page.host.items():
        told = format_size(value) if key.endswith("_bytes") and isinstance(value, int) else value
        yield f"<div><dt>{escape(key.removesuffix('_bytes'))}</dt><dd>{escape(str(told))}</dd></div>"
    yield "</dl></details>"


def _filters(tests: Sequence[Entry]) -> Iterable[str]:
    """What the script shows and uses."""
    counts = Counter(test.outcome for test in tests)
    yield '<form id="filters" hidden>'
    yield '<input type="search" placeholder="name or message" aria-label="Show tests with this in them">'
    for outcome in sorted(counts, key=_rank):
        box = f'<input type="checkbox" name="{escape(outcome)}" checked>'
        yield f'<label class="{escape(outcome)}">{box} {counts[outcome]} {escape(outcome)}</label>'
    yield '<output aria-live="polite"></output>'
    yield "</form>"


def _rank(outcome: str) -> int:
    return OUTCOMES.index(outcome) if outcome in OUTCOMES else len(OUTCOMES)


def _ordered(tests: Sequence[Entry]) -> list[Entry]:
    """The heaviest first, as in the terminal; tests without a box last."""
    weights = table.weights([(test.nodeid, test.usage) for test in tests])
    order = sorted(range(len(tests)), key=lambda index: (not tests[index].usage, -weights[index], index))
    return [tests[index] for index in order]


def _table(tests: Sequence[Entry], columns: Sequence[Column]) -> Iterable[str]:
    yield '<table id="tests">'
    yield "<thead><tr>"
    yield '<th scope="col">test</th><th scope="col">outcome</th>'
    for column in columns:
        yield f'<th scope="col" class="number" title="{escape(MEANINGS[column.key])}">{escape(column.title)}</th>'
    yield "</tr></thead>"
    yield "<tbody>"
    for test in tests:
        yield f'<tr class="{escape(test.outcome)}">'
        yield f"<td>{_name(test)}</td>"
        yield f'<td data-value="{_rank(test.outcome)}">{escape(test.outcome)}</td>'
        yield from (_cell(column, test.usage) for column in columns)
        yield "</tr>"
    yield "</tbody>"
    yield "</table>"


def _name(test: Entry) -> str:
    name = escape(table.printable(test.nodeid))
    if not (test.limits or test.texts):
        return f"<code>{name}</code>"
    told = []
    if test.limits:
        keys = ", ".join(f"{key}={_literal(value)}" for key, value in test.limits.items())
        told.append(f"<p><code>@pytest.mark.sandbox({escape(keys)})</code></p>")
    for title, text in test.texts:
        told.append(f"<h2>{escape(title)}</h2><pre>{escape(_shown(text))}</pre>")
    return f"<details><summary><code>{name}</code></summary>{''.join(told)}</details>"


def _literal(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _cell(column: Column, usage: Mapping[str, float]) -> str:
    if column.key not in usage:
        return '<td class="number">-</td>'
    value = usage[column.key]
    exact = f'data-value="{value!r}"'
    limit = usage.get("memory_limit_bytes", 0)
    if column.key != "memory_peak_bytes" or limit <= 0:
        return f'<td class="number" {exact}>{column.show(value)}</td>'
    share = min(1.0, value / limit)
    kind = "number bar near" if share >= NEAR else "number bar"
    told = f'style="--share: {share:.0%}" title="{share:.0%} of mem"'
    return f'<td class="{kind}" {exact} {told}>{column.show(value)}</td>'


def _shown(text: str) -> str:
    """A text with its lines; what HTML cannot hold is written out: a terminal's escapes, half of a surrogate pair."""
    return "".join(char if char.isprintable() or char in "\n\t" else table.printable(char) for char in text)
