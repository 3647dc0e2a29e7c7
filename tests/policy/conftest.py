from __future__ import annotations

import tests.patience  # noqa: F401 - a setting for all of hypothesis
