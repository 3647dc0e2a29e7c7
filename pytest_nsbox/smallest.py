"""``nsbox.smallest``: how small a limit may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_nsbox.policy.bisection import Scale, bisect, scale_of
from pytest_nsbox.policy.errors import BadValueError, BoxFailed, SandboxError
from pytest_nsbox.policy.table import short_bytes, short_seconds

if TYPE_CHECKING:
    import os

    from pytest_nsbox.leavings import Result
    from pytest_nsbox.nsbox import NsBox

    Value = str | float
    Work = Sequence[str | os.PathLike[str]] | Callable[[Value], object]


@dataclass(frozen=True)
class Step:
    """One attempt: the limit, whether it was enough, and the result (of a callable: what it raised, or None)."""

    value: Value
    succeeded: bool
    result: Result | None = None
    error: BaseException | None = None

    def __str__(self) -> str:
        return f"{self.value}: {'enough' if self.succeeded else 'too little'}{self._why()}"

    def _why(self) -> str:
        if self.error is not None:
            said = str(self.error).partition("\n")[0]
            return f" ({type(self.error).__name__}: {said})"
        if self.result is None:
            return ""
        used = self.result.usage
        parts = [f"status {self.result.returncode}"]
        if self.result.oom_killed:
            parts = ["OOM-killed"]
        elif self.result.timed_out:
            parts = ["timed out"]
        parts += [f"memory {short_bytes(used['memory_peak_bytes'])}"] if "memory_peak_bytes" in used else []
        parts += [f"cpu {short_seconds(used['cpu_s'])}"] if "cpu_s" in used else []
        return f" ({', '.join(parts)})"


@dataclass(frozen=True)
class Smallest:
    """The smallest ``value`` of ``key`` that was enough, as a marker takes it, and the steps to it in their order."""

    key: str
    value: Value
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "\n".join([f"smallest {self.key}: {self.value}", *(f"  {step}" for step in self.steps)])


def find(
    boxes: NsBox, work: Work, key: str, bounds: tuple[Value, Value], precision: Value | None, spec: Mapping[str, Any]
) -> Smallest:
    """See `NsBox.smallest`."""
    low, high = bounds
    scale = scale_of(key)
    if key in spec:
        raise TypeError(f"nsbox.smallest looks for {key}, and is given it too: {key}={spec[key]!r}")
    smallest, largest = _read(scale, "low", low), _read(scale, "high", high)
    if smallest > largest:
        raise ValueError(f"nsbox.smallest: low={low!r} is more than high={high!r}")
    steps: list[Step] = []

    def works(value: float) -> bool:
        written = scale.write(value)
        step = _call(work, written) if callable(work) else _run(boxes, work, {**spec, key: written}, written)
        steps.append(step)
        return step.succeeded

    step_size = scale.precision if precision is None else _read(scale, "precision", precision)
    found = bisect(smallest, largest, step_size, works)
    if found is None:
        last = steps[-1].result
        printed = f"\n{last.stdout}{last.stderr}" if last is not None else ""
        raise BoxFailed(f"not even {key}={high!r} is enough: {steps[-1]}{printed}")
    return Smallest(key, scale.write(found), tuple(steps))


def _read(scale: Scale, name: str, value: Value) -> float:
    try:
        return scale.read(value)
    except BadValueError as error:
        raise ValueError(f"nsbox.smallest: {name}={value!r}: {error}") from None


def _run(boxes: NsBox, argv: Any, spec: dict[str, Any], value: Value) -> Step:
    result = boxes.run(argv, **spec)
    return Step(value, result.returncode == 0 and not result.timed_out and not result.oom_killed, result)


def _call(function: Callable[[Value], object], value: Value) -> Step:
    """A callable fails by returning False or by what a test fails by."""
    try:
        said = function(value)
    except (SandboxError, AssertionError, OSError, MemoryError) as error:
        return Step(value, succeeded=False, error=error)
    return Step(value, succeeded=said is not False)
