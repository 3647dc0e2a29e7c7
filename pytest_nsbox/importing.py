"""Imports of this package past pytest's own hook.

It rewrites the asserts of plugins, and ours are no test's. To look every module up in a second cache makes an import
dearer by 0.3 ms, for the 60 modules of a run with boxes.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

_PACKAGE = f"{__package__}."


class _Finder:
    """Finds the modules of this package the way Python does."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, path, target) if name.startswith(_PACKAGE) else None


def _remove() -> None:
    """Python keeps that list to its very end. By way of us, whom pytest's own hook has loaded, that would keep all of
    pytest, and take 10 ms longer.
    """
    with contextlib.suppress(ValueError):
        sys.meta_path.remove(_Finder)


if _Finder not in sys.meta_path:
    sys.meta_path.insert(0, _Finder)
    atexit.register(_remove)
