"""The inner suite of test_traces.py: makes every trace, and stays until the host has looked."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.escapes.traces import TRACES

SHARED = Path(os.environ["NSBOX_SHARED"])
KEPT: list[object] = []


@pytest.mark.parametrize("net", [pytest.param(net, marks=pytest.mark.sandbox(net=net)) for net in (True, False)])
def test_traces(net: bool) -> None:
    kind = "none" if not net else "host"
    tag = (SHARED / f"tag-{kind}").read_text()
    for trace in TRACES.values():
        if (net and trace.net) or not os.path.exists(trace.needs):
            continue
        KEPT.append(trace.make(tag))
        assert trace.seen(tag), f"{trace.name} is not even seen in the box"
    (SHARED / f"made-{kind}").touch()
    deadline = time.monotonic() + 30
    while not (SHARED / f"seen-{kind}").exists():
        assert time.monotonic() < deadline, "nobody looked"
        time.sleep(0.01)
