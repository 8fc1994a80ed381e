"""Settings of the whole suite: every graph that a pass or an edit leaves behind is checked."""

from __future__ import annotations

import os

os.environ.setdefault("ISOBIT_CHECK", "1")
