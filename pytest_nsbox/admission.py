"""Boxes that run at once fit the machine together: what their limits promise stays within a budget.

The budget is shared by all pytest processes of one user on this machine: workers of xdist and other runs. A box that
does not fit waits until others have ended; one that never could is refused when it is read (`policy.spec.check_host`).
Containers that tests start are not counted: a test that holds its own box and waited for theirs could wait for ever.
"""

from __future__ import annotations

import functools
import math
import tempfile
import time
from typing import TYPE_CHECKING, Final

from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.real import os

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.kernel.claims import Claims
    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.warden.client import Box

PERIOD: Final = 0.02  # seconds between two looks at what others claim
PATIENCE: Final = 5.0  # seconds of waiting that nobody is told of
SHARED: Final = "/dev/shm"  # the same for all runs, whatever their TMPDIR is
_sleep = time.sleep  # a suite may replace it
_now = time.monotonic


def machine() -> tuple[int, float]:
    """Bytes of memory and CPUs that boxes may have together where nothing else was said."""
    from pytest_nsbox.kernel.job import memory_and_cpus

    return memory_and_cpus()


def place() -> str:
    """The file of the user's claims."""
    directory = SHARED if os.access(SHARED, os.W_OK | os.X_OK) else tempfile.gettempdir()
    return f"{directory}/nsbox-budget-{os.geteuid()}"


class Admission:
    """The claims of one session.

    budget  returns bytes and CPUs, at the first box with a limit
    tell    is given a line for the user when a box has waited for a while
    """

    def __init__(self, budget: Callable[[], tuple[float, float]], tell: Callable[[str], None]) -> None:
        self._budget = functools.cache(budget)
        self._tell = tell
        self._claims: Claims | None = None
        self._admitted: list[Box] = []

    def admit(self, box: Box, *, wait: bool = True) -> bool:
        """Count `box` from now on, once there is room for it; False if there is none and nobody is to wait."""
        if _needs(box.spec) == (0, 0) or box in self._admitted:
            return True
        # One that was not given back has been killed.
        held = [other for other in self._admitted if other.is_alive()]
        claims = self._opened()
        mem, cpu = _sum([*held, box])
        if held:
            # Somebody who holds what the box of this session waits for may wait for what this one holds.
            claims.set(mem, cpu)
        elif not claims.claim(mem, cpu, self._budget(), self._patiently(box) if wait else None):
            return False
        self._admitted = [*held, box]
        return True

    def leave(self, box: Box) -> None:
        """Count `box` no more."""
        if box in self._admitted:
            self._admitted.remove(box)
            self._opened().set(*_sum(self._admitted))

    def _opened(self) -> Claims:
        if self._claims is None:
            from pytest_nsbox.kernel.claims import Claims

            try:
                self._claims = Claims(place())
            except KernelError as error:
                raise BoxFailed(f"boxes cannot be counted: {error}") from None
        return self._claims

    def _patiently(self, box: Box) -> Callable[[], object]:
        began = _now()
        told = False

        def wait() -> None:
            nonlocal told
            _sleep(PERIOD)
            if not told and _now() - began > PATIENCE:
                told = True
                self._tell(waiting(box.spec, self._budget()))

        return wait

    def close(self) -> None:
        """Claim nothing any more."""
        if self._claims is not None:
            self._claims.close()
            self._claims = None
        self._admitted.clear()

    def close_in_child(self) -> None:
        """In a test's process."""
        if self._claims is not None:
            self._claims.close_in_child()


def _needs(spec: Spec) -> tuple[int, float]:
    return spec.mem or 0, spec.cpu or 0


def _sum(boxes: list[Box]) -> tuple[int, float]:
    needs = [_needs(box.spec) for box in boxes]
    return sum(mem for mem, _ in needs), sum(cpu for _, cpu in needs)


def waiting(spec: Spec, budget: tuple[float, float]) -> str:
    """The line for a user whose test waits."""
    from pytest_nsbox.policy.units import format_size

    parts = [f"{format_size(budget[0])} of memory"] if budget[0] < math.inf else []
    parts += [f"{budget[1]:g} CPUs"] if budget[1] < math.inf else []
    asked = ", ".join(f"{name}={value}" for name, value in spec.shown().items() if name in ("mem", "cpu"))
    return (
        f"sandbox: a box with {asked} waits until others have ended: together they may have {' and '.join(parts)} "
        "(ini sandbox_budget_mem, sandbox_budget_cpu)"
    )
