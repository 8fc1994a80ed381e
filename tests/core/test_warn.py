"""Warnings point at the user's own line, through however many layers of isobit they come."""

from __future__ import annotations

from pathlib import Path

import pytest

import isobit
from isobit.errors import IsobitWarning, TargetWarning
from isobit.plugins import Registry
from isobit.warn import warn

HERE = Path(__file__).name


def test_a_misspelt_operation_is_told_of_at_the_users_line(tmp_path):
    shipped = Path(isobit.__file__).parent / "targets" / "onnxruntime-cpu.toml"
    path = tmp_path / "mine.toml"
    path.write_text(shipped.read_text("utf-8").replace('\nops = ["Conv", ', '\nops = ["Convv", '))
    with pytest.warns(TargetWarning, match="'Convv'") as caught:
        Registry().target(path)
    assert {Path(warning.filename).name for warning in caught} == {HERE}


def _function(module: str, body: str, **names):
    """A function of a module of this name, in a file of this name."""
    namespace = {"__name__": module, **names}
    exec(compile(f"def call():\n    {body}\n", f"{module}.py", "exec"), namespace)
    return namespace["call"]


@pytest.mark.parametrize(
    ("modules", "file"),
    [
        (["isobit.quantsim.quantsim", "isobit_torch.model"], HERE),
        (["isobit.quantsim.quantsim", "mine"], "mine.py"),
        (["isobit.quantsim.quantsim", "contextlib", "isobit.cli"], HERE),
        (["isobitten"], "isobitten.py"),
    ],
)
def test_the_line_is_the_nearest_outside(modules, file):
    call = _function("isobit.deep", "warn('text', category)", warn=warn, category=IsobitWarning)
    for module in modules:
        call = _function(module, "inner()", inner=call)
    with pytest.warns(IsobitWarning) as caught:
        call()
    assert Path(caught[0].filename).name == file
