"""Run each pytest test in a Linux container of its own: limits, a throwaway root, usage figures."""

from __future__ import annotations

# Only this: the warden and every command start by importing the package, so nothing heavy may come along.
from pytest_nsbox.policy.errors import BoxFailed, SandboxCrash, SandboxError, SandboxOOM, SandboxTimeout

__version__ = "0.1.0"

__all__ = ["BoxFailed", "SandboxCrash", "SandboxError", "SandboxOOM", "SandboxTimeout", "__version__"]
