"""What the user asked for: marks, ini and command line, as layers with the place that each came from.

Markers win, the closest first; then ``sandbox_defaults`` of the ini; then ``--sandbox-set`` fills what is unset.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest

from pytest_nsbox.options import MARKER, SETTINGS, Settings, add_marker, add_options, is_sure_to_box, read
from pytest_nsbox.policy.errors import SpecError, SpecProblems
from pytest_nsbox.policy.keys import PARAMETRISED
from pytest_nsbox.policy.record import record
from pytest_nsbox.policy.spec import HostFacts, Layer, Spec
from pytest_nsbox.policy.units import parse_cpuset

__all__ = [
    "SETTINGS",
    "SPEC",
    "Resolved",
    "Settings",
    "add_marker",
    "add_options",
    "budget",
    "generate",
    "host_facts",
    "is_sure_to_box",
    "read",
    "resolve",
]

SPEC = pytest.StashKey[Spec]()


class Resolved:
    """The spec of each item (None: not in a box), and everything wrong, one text each."""

    def __init__(self) -> None:
        self.specs: dict[pytest.Item, Spec | None] = {}
        self.problems: list[str] = []


def resolve(items: Sequence[pytest.Item], settings: Settings, host: HostFacts | None = None) -> Resolved:
    """The spec of every item, put into its stash under SPEC too when it runs in a box, and all problems.

    With ``off`` markers are checked as ever, but no item gets a spec and the host's size does not matter. A problem
    that several tests share is told once, with the first of them and the number of the others.
    """
    resolved = Resolved()
    hosts = _Hosts(settings, host)
    cache: dict[tuple[int, ...], Spec | SpecProblems] = {}
    blamed: dict[str, list[str]] = {}
    grouped: list[tuple[pytest.Item, Spec]] = []
    marks = _Marks()
    for item in items:
        found = marks.of(item)
        spec: Spec | None = None
        problems = [str(problem) for each in found for problem in each.problems]
        if _wants_box(item, found, settings, problems):
            key = tuple(id(each.layer) for each in found)
            if key not in cache:
                cache[key] = _build([each.layer for each in found if each.layer], settings, hosts)
            built = cache[key]
            if isinstance(built, SpecProblems):
                problems += [str(problem) for problem in built.problems]
            else:
                if built.scope != "function":
                    grouped.append((item, built))
                if not settings.off:
                    spec = built
                    item.stash[SPEC] = spec
        resolved.specs[item] = spec
        for problem in dict.fromkeys(problems):
            blamed.setdefault(problem, []).append(item.nodeid)
    if grouped:
        from pytest_nsbox import groups

        for nodeid, problem in groups.contradictions(grouped, lambda item, key: _place(marks.of(item), settings, key)):
            blamed.setdefault(problem, []).append(nodeid)
    resolved.problems = [_told(problem, nodeids) for problem, nodeids in blamed.items()]
    return resolved


def _build(layers: list[Layer], settings: Settings, hosts: _Hosts) -> Spec | SpecProblems:
    merged = [*layers, *settings.layers]
    try:
        return Spec.build(merged, rootdir=settings.rootdir, host=hosts.facts_for(merged))
    except SpecProblems as error:
        return error


def _place(marks: list[_Mark], settings: Settings, key: str) -> str:
    """Where the value that counts for ``key`` was written."""
    layers = [*(mark.layer for mark in marks if mark.layer), *settings.layers]
    return next((layer.place for layer in layers if key in layer.values), "")


def _told(problem: str, nodeids: list[str]) -> str:
    others = len(nodeids) - 1
    more = f" (and {others} more test{'s' if others > 1 else ''})" if others else ""
    return f"{nodeids[0]}{more}: {problem}"


class _Hosts:
    """What a spec must fit, found out as far as one asks: most runs have boxes without limits, or none."""

    def __init__(self, settings: Settings, given: HostFacts | None) -> None:
        self._settings = settings
        self._given = given
        self._found: dict[bool, HostFacts] = {}

    def facts_for(self, layers: Iterable[Layer]) -> HostFacts | None:
        if self._settings.off or self._given is not None:
            return None if self._settings.off else self._given
        limited = any(name in layer.values for layer in layers for name in ("mem", "cpu"))
        if limited not in self._found:
            self._found[limited] = host_facts(self._settings, limited=limited)
        return self._found[limited]


def host_facts(settings: Settings, *, limited: bool = True) -> HostFacts:
    """The CPUs that are online here, as sysfs lists them (all by number where it is not mounted); where boxes are
    ``limited``, what they may have together.
    """
    try:
        with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
            cpus = parse_cpuset(file.read().strip())
    except (OSError, ValueError):
        cpus = tuple(range(os.cpu_count() or 1))
    mem, cpu = budget(settings) if limited else (None, None)
    return HostFacts(cpus, budget_mem=mem, budget_cpu=cpu)


def budget(settings: Settings) -> tuple[float, float]:
    """Bytes and CPUs that all boxes may have together."""
    mem, cpu = settings.budget_mem, settings.budget_cpu
    if mem is None or cpu is None:
        from pytest_nsbox import admission

        has, counts = admission.machine()
        mem, cpu = has if mem is None else mem, counts if cpu is None else cpu
    return mem, cpu


@record
class _Mark:
    """One ``sandbox`` mark, read: its layer, or an opt-out, and what is wrong with its form."""

    layer: Layer | None = None
    opted_out: bool = False
    problems: tuple[SpecError, ...] = ()


class _Marks:
    """Reads each mark once, however many tests of a module or class it covers."""

    def __init__(self) -> None:
        self._read: dict[tuple[int, str], _Mark] = {}
        self._of_node: dict[pytest.Item | pytest.Collector, list[_Mark]] = {}

    def of(self, item: pytest.Item) -> list[_Mark]:
        """The item's marks, the closest first."""
        return [mark for node in reversed(item.listchain()) for mark in self._on(node, item)]

    def _on(self, node: Any, item: pytest.Item) -> list[_Mark]:
        if node is item:
            return [self._mark(mark, "sandbox marker") for mark in own_marks(node)]
        if node not in self._of_node:
            place = f"sandbox marker of {node.name or 'the session'}"
            self._of_node[node] = [self._mark(mark, place) for mark in own_marks(node)]
        return self._of_node[node]

    def _mark(self, mark: pytest.Mark, place: str) -> _Mark:
        key = (id(mark), place)
        if key not in self._read:
            self._read[key] = read_mark(mark, place)
        return self._read[key]


def own_marks(node: Any) -> Iterator[pytest.Mark]:
    """The sandbox marks of one node alone, the closest to the test first.

    A parameter's mark (``pytest.param(..., marks=...)``) is closer than the function's, and a class's own is closer
    than its base's; pytest lists them the other way round.
    """
    marks = [mark for mark in node.own_markers if mark.name == MARKER]
    if len(marks) < 2:
        return iter(marks)
    parameter = {id(mark) for mark in getattr(getattr(node, "callspec", None), "marks", ())}
    if isinstance(node, pytest.Class):
        order = {id(mark): depth for depth, cls in enumerate(node.obj.__mro__) for mark in _marks_of(cls)}
        return iter(sorted(marks, key=lambda mark: order.get(id(mark), -1)))
    return iter(sorted(marks, key=lambda mark: id(mark) not in parameter))


def _marks_of(cls: type) -> list[Any]:
    marks = cls.__dict__.get("pytestmark", [])
    return [getattr(mark, "mark", mark) for mark in (marks if isinstance(marks, list) else [marks])]


def read_mark(mark: pytest.Mark, place: str) -> _Mark:
    """What one mark says: keyword arguments, or ``False`` alone."""
    if not mark.args:
        return _Mark(Layer(mark.kwargs, place))
    if len(mark.args) == 1 and mark.args[0] is False and not mark.kwargs:
        return _Mark(opted_out=True)
    said = ", ".join([*map(repr, mark.args), *(f"{name}={value!r}" for name, value in mark.kwargs.items())])
    accepted = "keyword arguments such as mem='256M', or False alone"
    return _Mark(problems=(SpecError("", "", accepted, f"sandbox({said}) is not understood", place),))


def _wants_box(item: pytest.Item, marks: list[_Mark], settings: Settings, problems: list[str]) -> bool:
    requested = MARKER in getattr(item, "fixturenames", ())
    if marks and marks[0].opted_out:
        if requested:
            problems.append("the test requests the fixture 'sandbox', but its marker sandbox(False) denies it a box")
        return False
    return any(mark.layer for mark in marks) or requested or settings.all


def generate(metafunc: pytest.Metafunc) -> None:
    """Parametrise a test function whose ``mem`` or ``cpu`` is a list, one test for each value."""
    settings = metafunc.config.stash.get(SETTINGS, None) or Settings()
    marks = _Marks().of(metafunc.definition)
    layers = [mark.layer for mark in marks if mark.layer]
    if not _wants_box(metafunc.definition, marks, settings, []):
        return
    for name in PARAMETRISED:
        value = next((layer.values[name] for layer in [*layers, *settings.layers] if name in layer.values), None)
        if isinstance(value, (list, tuple)) and value:
            _parametrise(metafunc, name, value)


def _parametrise(metafunc: pytest.Metafunc, name: str, values: Iterable[object]) -> None:
    # The value travels as a mark of the parameter, which is the closest of all; the argument itself is not passed.
    argument = f"sandbox_{name}"
    metafunc.fixturenames.append(argument)
    metafunc.parametrize(
        argument,
        [pytest.param(value, marks=pytest.mark.sandbox(**{name: value}), id=f"{name}={value}") for value in values],
    )
