"""How a test's process ended, and what to say of it: the facts in, the exception to report out."""

from __future__ import annotations

from pytest_nsbox.policy.errors import SandboxCrash, SandboxError, SandboxOOM, SandboxTimeout
from pytest_nsbox.policy.record import record
from pytest_nsbox.policy.units import format_seconds, format_size, write_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_nsbox.policy.spec import Spec

COPIED = "(inherited Python objects are copied when touched)"

# signal(7). Numbers are those of x86 and ARM; the signal module would cost the import of enum for this one table.
_SIGNALS = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG"
    " XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
)
SIGNALS = dict(enumerate(_SIGNALS.split(), start=1))
SIGKILL = 9


@record
class Ending:
    """The end of the process that ran a test.

    ``returncode`` as in subprocess (-9 for SIGKILL; None if unknown); ``finished`` when its last message came, so that
    the test ended before the process did; ``timed_out`` when the deadline killed it; ``oom_kills`` and ``pids_hit``
    from the box's counters; ``phase`` setup, call or teardown; ``stacks`` what faulthandler wrote, or "".
    """

    returncode: int | None
    timed_out: bool = False
    oom_kills: int = 0
    finished: bool = False
    phase: str = "call"
    stacks: str = ""
    pids_hit: bool = False


def classify(ending: Ending, spec: Spec, usage: Mapping[str, float]) -> SandboxError | None:
    """The exception that tells this ending, or None when the test itself told how it ended.

    The first line is the fact; then come the stacks, then the key to raise where a limit did it.
    """
    if ending.finished:
        return None
    if ending.timed_out:
        return SandboxTimeout(_text(_timeout_line(spec), ending, _hints(ending, spec, usage, "timeout")))
    if ending.oom_kills and ending.returncode == -SIGKILL:
        return SandboxOOM(_text(oom_line(spec, usage), ending, _hints(ending, spec, usage, "mem")))
    return SandboxCrash(_text(_crash_line(ending.returncode), ending, _hints(ending, spec, usage, "")))


def oom_line(spec: Spec, usage: Mapping[str, float]) -> str:
    """``OOM-killed: memory limit 256.0 MiB, peak 256.0 MiB``; also for a kill that the test survives."""
    peak = usage.get("memory_peak_bytes")
    facts = [f"memory limit {format_size(spec.mem)}" if spec.mem is not None else "no memory limit of its own"]
    if peak is not None:
        facts.append(f"peak {format_size(peak)}")
    return "OOM-killed: " + ", ".join(facts)


def oom_hint(spec: Spec) -> str:
    """The key to raise after an OOM kill."""
    if spec.mem is None:
        return f"the host, or a group above the box, ran out of memory {COPIED}"
    return f"raise mem=, e.g. mem={write_size(_roomier(spec.mem))!r} {COPIED}"


def pids_hint(limit: int) -> str:
    """What to do where a process or thread could not be started for `limit`."""
    return f"raise pids=, e.g. pids={limit * 2}: the limit of {limit} processes and threads was met"


def signal_name(number: int) -> str:
    """``SIGSEGV`` for 11; ``SIGRTMIN+1`` for 35."""
    if number in SIGNALS:
        return f"SIG{SIGNALS[number]}"
    if 34 <= number <= 64:
        return f"SIGRTMIN+{number - 34}" if number > 34 else "SIGRTMIN"
    return f"signal {number}"


def _timeout_line(spec: Spec) -> str:
    after = f" after {format_seconds(spec.timeout)}" if spec.timeout is not None else ""
    return f"timed out{after} (sandbox timeout)"


def _crash_line(returncode: int | None) -> str:
    if returncode is None:
        return "ended before the test ended, without a status"
    if returncode < 0:
        return f"killed by {signal_name(-returncode)}"
    return f"exited with status {returncode} before the test ended"


def _hints(ending: Ending, spec: Spec, usage: Mapping[str, float], cause: str) -> list[str]:
    hints = []
    if cause == "timeout" and spec.timeout is not None:
        hints.append(f"raise timeout=, e.g. timeout='{spec.timeout * 2:g}s'")
    hints += _ulimit_hints(ending, spec)
    if ending.pids_hit and spec.pids is not None:
        hints.append(pids_hint(spec.pids))
    if ending.oom_kills:
        # Last, so that the text ends with the remark on copied objects.
        if cause != "mem":
            hints.append(oom_line(spec, usage))
        hints.append(oom_hint(spec))
    return hints


def _ulimit_hints(ending: Ending, spec: Spec) -> list[str]:
    # SIGXCPU and SIGXFSZ come from these limits alone; SIGKILL also where soft and hard limit are the same.
    key = {-24: "cpu", -25: "fsize", -SIGKILL: "cpu"}.get(ending.returncode or 0)
    if ending.oom_kills or key is None or key not in {name for name, _, _ in spec.ulimits}:
        return []
    return [f"raise ulimits={{{key!r}: ...}}: the limit on {key} sends this signal"]


def _text(headline: str, ending: Ending, hints: list[str]) -> str:
    return "\n".join([headline, *([ending.stacks.rstrip("\n")] if ending.stacks.strip() else []), *hints])


def _roomier(size: int) -> int:
    """About twice ``size``, in whole MiB where that is close."""
    return max(2 * size // 2**20, 1) * 2**20 if size >= 2**20 else 2 * size
