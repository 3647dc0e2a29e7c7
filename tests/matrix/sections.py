"""All rows, in the order of the page."""

from __future__ import annotations

from tests.matrix.capture import CAPTURE
from tests.matrix.endings import ENDINGS, KINDS
from tests.matrix.fixtures import FIXTURES
from tests.matrix.options import OPTIONS
from tests.matrix.plugins import PLUGINS

SECTIONS = (FIXTURES, CAPTURE, OPTIONS, ENDINGS, KINDS, PLUGINS)
