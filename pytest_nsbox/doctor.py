"""``--sandbox-doctor``: what works here, why the rest does not, and the fix for each missing piece. Runs no test.

The tries run in a process of their own (kernel/probe.py as a program): pytest is large, may have threads, and must
not be changed by what it asks.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_nsbox import __version__
from pytest_nsbox.options import Settings, read
from pytest_nsbox.policy import capability as cap
from pytest_nsbox.policy.capability import Capability, Decision, Surroundings, decide
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.limits import controllers_needed
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.settings import SPEC

PATIENCE = 60  # seconds for all tries together
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from pytest_nsbox.kernel.probe import main; main(*sys.argv[2:])"
)


@dataclass(frozen=True)
class Examination:
    """What the tries gave."""

    around: Surroundings
    capabilities: Sequence[Capability]
    cgroup_version: int | None = None
    cgroup_driver: str = ""

    def lacking(self, names: Sequence[str]) -> list[Capability]:
        """Those of ``names`` that do not work."""
        return cap.lacking(names, self.capabilities)

    @property
    def works(self) -> bool:
        """Whether the plugin can work: every essential piece does."""
        return not self.lacking(cap.ESSENTIAL)


def examine(cgroup_parent: str | None = None, *, python: str = sys.executable) -> Examination:
    """Try everything. BoxFailed when the tries themselves cannot run."""
    if not sys.platform.startswith("linux"):
        return Examination(Surroundings(), [no_linux(sys.platform)])
    # -S and -I: the tries need nothing that is installed, and what a site or a variable starts must not start here.
    command = [python, "-I", "-S", "-c", _PROGRAM, str(Path(__file__).parent.parent)]
    if cgroup_parent is not None:
        command.append(cgroup_parent)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BoxFailed(f"the doctor's tries did not run: {error}") from error
    try:
        return read_examination(json.loads(done.stdout))
    except ValueError:
        text = done.stderr.strip() or f"status {done.returncode}"
        raise BoxFailed(f"the doctor's tries ended without an answer: {text}") from None


def no_linux(system: str) -> Capability:
    """The one capability that is told on other systems."""
    fix = "run the tests on Linux: a machine, a virtual machine, WSL 2, or a Linux container"
    return Capability(cap.LINUX, works=False, why=f"this is {system}; boxes are made of Linux namespaces", fix=fix)


def read_examination(document: Mapping[str, Any]) -> Examination:
    """The examination in the JSON of kernel/probe.py."""
    around = dict(document["around"])
    around["kernel"] = tuple(around["kernel"])
    found = [Capability(**entry) for entry in document["capabilities"]]
    return Examination(Surroundings(**around), found, document["cgroup_version"], document.get("cgroup_driver", ""))


def for_spec(spec: Spec, seen: Examination, unavailable: str) -> Decision:
    """What ``--sandbox-unavailable`` (fail, skip, run) makes of a test with this spec, given the tries."""
    version = seen.cgroup_version
    # Without any hierarchy the names of v2 do: none of them works.
    controllers = controllers_needed(spec, version or 2)
    capabilities = list(seen.capabilities)
    if version is None:
        groups = next(
            (entry for entry in capabilities if entry.name == cap.CGROUP), Capability(cap.CGROUP, works=False)
        )
        capabilities += [Capability(cap.controller(name), False, groups.why, groups.fix) for name in controllers]
    return decide(cap.needed(spec, controllers), capabilities, unavailable)


def survey(settings: Settings) -> Examination:
    """As `examine`, and where every piece works a whole box is made and removed again."""
    seen = examine(settings.cgroup_parent)
    if not seen.works:
        return seen
    return replace(seen, capabilities=[*seen.capabilities, cap.judge_box(try_box(settings), seen.around)])


def try_box(settings: Settings) -> str:
    """Make a box as tests get it and remove it; return why that failed, or ""."""
    from pytest_nsbox.warden.client import SessionConfig, Warden

    config = SessionConfig(tmpdir=tempfile.gettempdir(), cgroup_parent=settings.cgroup_parent, rootdir=settings.rootdir)
    try:
        warden = Warden.start(config)
    except OSError as error:
        return f"the warden does not start: {error}"
    try:
        warden.acquire(Spec()).release()
    except BoxFailed as error:
        return str(error)
    finally:
        warden.close()
    return ""


def settle(specs: MutableMapping[pytest.Item, Spec | None], settings: Settings) -> list[str]:
    """Take the boxes away from tests that cannot have them here, as ``--sandbox-unavailable=skip|run`` wants it.

    Such a test gets a skip mark, or runs plainly; its spec leaves ``specs`` and the item's stash. Returns lines that
    tell it, for the user must never have to find out. With "fail" nothing is tried: the box itself will say why.
    """
    if settings.unavailable == "fail" or not any(specs.values()):
        return []
    seen = survey(settings)
    decisions: dict[Spec, Decision] = {}
    told: Counter[str] = Counter()
    for item, spec in specs.items():
        if spec is None:
            continue
        if spec not in decisions:
            decisions[spec] = for_spec(spec, seen, settings.unavailable)
        decision = decisions[spec]
        if decision.action == "box":
            continue
        if decision.action == "skip":
            item.add_marker(pytest.mark.skip(reason=decision.text.replace("\n", "; ")))
        del item.stash[SPEC]
        specs[item] = None
        told[decision.text] += 1
    how = "are skipped" if settings.unavailable == "skip" else "run without a box"
    return [f"sandbox: {count} test(s) {how}: {text}" for text, count in told.items()]


# --- the text -------------------------------------------------------------------------------------------------------


def tell(seen: Examination) -> list[str]:
    """The doctor's text."""
    lines = [f"pytest-nsbox {__version__}: what works here", _place(seen.around), "", *_in_dockers_words(seen), ""]
    width = max(len(capability.name) for capability in seen.capabilities) + 2
    for capability in seen.capabilities:
        lines.extend(_entry(capability, width))
    return [*lines, "", verdict(seen)]


def _in_dockers_words(seen: Examination) -> list[str]:
    """What `docker info` would tell of the same machine, under the same names."""
    scratch = "in memory" if seen.lacking([cap.DISK_SCRATCH]) else "on disk"
    lines = [
        f"Storage Driver: overlay (scratch {scratch})",
        f" Backing Filesystem: {seen.around.root_type or 'unknown'}",
        f"Cgroup Driver: {seen.cgroup_driver or 'none'}",
        f"Cgroup Version: {seen.cgroup_version or 'none'}",
        f"Security Options: {seen.around.mode}",
    ]
    warned = {
        cap.controller("memory"): "No memory limit support",
        cap.SWAP: "No swap limit support",
        cap.controller("cpu"): "No cpu cfs quota support",
        cap.controller("cpuset"): "No cpuset support",
        cap.controller("pids"): "No pids limit support",
    }
    missing = {capability.name for capability in seen.capabilities if not capability.works}
    return lines + [f"WARNING: {text}" for name, text in warned.items() if name in missing or cap.CGROUP in missing]


def _entry(capability: Capability, width: int) -> list[str]:
    if capability.works:
        return [f"  ok       {capability.name}"]
    without = cap.without(capability.name)
    first, *more = capability.why.splitlines() or ["?"]
    lines = [f"  {'missing' if without else 'MISSING'}  {capability.name.ljust(width)}{first}"]
    indent = " " * (11 + width)
    lines += [indent + line for line in more]
    if without:
        lines.append(f"{indent}without it: {without}")
    if capability.fix:
        lines.append(f"{indent}fix: {capability.fix}")
    return lines


def _place(around: Surroundings) -> str:
    parts = [
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        f"pytest {pytest.__version__}",
        "root" if around.uid == 0 else f"user id {around.uid}",
    ]
    if around.uid == 0 and not around.sys_admin:
        parts.append("without CAP_SYS_ADMIN")
    if not around.initial_userns:
        parts.append("in a user namespace")
    if around.container:
        parts.append(f"{around.container} container")
    if around.seccomp_filter:
        parts.append("under a seccomp filter")
    return ", ".join(parts)


def verdict(seen: Examination) -> str:
    """The last line: whether boxes can be made."""
    missing = [capability.name for capability in seen.lacking(cap.ESSENTIAL)]
    if missing == [cap.BOX]:
        return "Tests cannot run in boxes here: every piece works, and yet making a box failed."
    if missing:
        return f"Tests cannot run in boxes here: {', '.join(missing)} missing."
    lesser = [capability.name for capability in seen.capabilities if not capability.works]
    return f"Tests can run in boxes here{', without ' + ', '.join(lesser) if lesser else ''}."


def run(config: pytest.Config) -> int:
    """Print the doctor's text; 0 when the plugin can work here, else 1."""
    writer = config.get_terminal_writer()
    try:
        seen = survey(read(config))
    except BoxFailed as error:
        writer.line(str(error), red=True)
        return 1
    for line in tell(seen):
        writer.line(line, **_colour(line))
    return 0 if seen.works else 1


def _colour(line: str) -> dict[str, bool]:
    words = line.split(maxsplit=1)
    if not line.startswith("  ") or not words:
        return {}
    return {"ok": {"green": True}, "MISSING": {"red": True}, "missing": {"yellow": True}}.get(words[0], {})
