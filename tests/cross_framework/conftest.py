"""Interpreters: PyTorch and TensorFlow may live in different environments."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def run_in() -> Callable[..., None]:
    """Runs a script in the interpreter of a framework: ISOBIT_PYTHON_TORCH and so on, else this one."""

    def run(framework: str, script: Path, *arguments: Path) -> None:
        python = os.environ.get(f"ISOBIT_PYTHON_{framework.upper()}", sys.executable)
        command = [python, str(script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"})
        assert done.returncode == 0, done.stderr[-4000:]

    return run
