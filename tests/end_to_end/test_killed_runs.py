"""Runs that are killed leave old files or new ones, never a mix, and nothing that the next run does not remove."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a verb is killed in a fork")
def test_killed_at_random_moments() -> None:
    """`python -m killed_runs` kills each verb 50 times; these are other moments."""
    here = Path(__file__).parent
    paths = [str(here), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-m", "killed_runs", "--count", "3", "--seed", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
