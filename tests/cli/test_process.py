"""The command as a process of its own: exit codes, signals, what it imports, plug-ins that are broken."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: A run that does little of each: what is tested is how it ends.
QUICK = ("--samples", 32, "--recipe", "basic", "--method", "minmax", "--latency-batch", 0)

# Runs the command, and sends this process a signal when `place` is reached.
INTERRUPT = """
import importlib, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process starts with it ignored
module, attribute, method, name = sys.argv.pop(1).split(":")
owner = getattr(importlib.import_module(module), attribute)
original = getattr(owner, method)
def interrupted(*arguments, **settings):
    if method != "observe":
        original(*arguments, **settings)
    os.kill(os.getpid(), getattr(signal, name))
    import time
    time.sleep(5)
setattr(owner, method, interrupted)
from isobit.cli import main
main()
"""


def command(*arguments, script=None, start=("-m", "isobit.cli"), **environment):
    start = start if script is None else ["-c", script]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def test_exit_codes():
    assert command("targets").returncode == 0
    failed = command("targets", "nope")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: unknown target 'nope'")
    assert failed.stderr.count("\n") == 1
    assert command("nope").returncode == 2
    shown = command("targets", "nope", "--debug")
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr


@pytest.mark.parametrize(
    ("place", "signal", "code"),
    [
        ("isobit.quantsim.simulation:Simulation:take", "SIGINT", 130),  # between calibration and export
        ("isobit_onnx.model:OnnxModel:observe", "SIGINT", 130),  # during calibration
        ("isobit.formats.isobit_json:IsobitJson:write", "SIGINT", 130),  # while the files are written
        ("isobit.formats.isobit_json:IsobitJson:write", "SIGTERM", 143),
    ],
)
def test_a_signal_leaves_nothing(digits, tmp_path, place, signal, code):
    done = command(
        *(f"{place}:{signal}", "quantize", digits / "model.onnx", "--data", digits / "calibration.npz"),
        *("-o", tmp_path / "out", *QUICK),
        script=INTERRUPT,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr == ("interrupted; nothing was written\n" if signal == "SIGINT" else "")
    assert not list(tmp_path.iterdir())


# Ctrl-C while a C extension is imported, which turns the exception into one of its own.
INTERRUPT_AN_IMPORT = """
import importlib.abc, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == module:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                import time
                time.sleep(5)
            except KeyboardInterrupt:
                if kind == "plain":
                    raise
                if kind == "compiled":  # CPython remembers that it ended code compiled from a string
                    exec("raise KeyboardInterrupt")
                raise kinds[kind]("initialization of an extension failed")
module, kind, kinds = sys.argv.pop(1), sys.argv.pop(1), {"import": ImportError, "system": SystemError}
sys.meta_path.insert(0, Finder())
from isobit.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("numpy", "import"),
        ("onnxruntime", "system"),
        ("typer", "import"),
        ("typer._adapters", "plain"),  # typer imports it before the verb, and leaves without a word on Ctrl-C
        ("typer", "compiled"),
    ],
)
def test_an_import_that_is_interrupted_is_no_bug(digits, tmp_path, module, kind):
    (tmp_path / "interrupting.py").write_text(INTERRUPT_AN_IMPORT, "utf-8")
    data = ("quantize", digits / "model.onnx", "--data", digits / "calibration.npz", "-o", tmp_path / "out")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = command(module, kind, *data, start=("-m", "interrupting"), PYTHONPATH=path)
    assert (done.returncode, done.stderr) == (130, "interrupted; nothing was written\n")


def test_importing_the_command_is_light():
    heavy = "{'numpy', 'PIL', 'onnx', 'onnx_ir', 'onnxruntime', 'numba', 'torch', 'tensorflow', 'keras'}"
    for module in ("isobit.cli", "isobit.cli.application"):
        done = command(script=f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))")
        assert done.stdout == "[]\n", done.stderr


def test_help_needs_no_plugin():
    done = command("quantize", "--help", ISOBIT_DISABLE_PLUGINS="onnx")
    assert done.returncode == 0
    assert "calibration.npz" in done.stdout


def test_progress_is_silent_when_no_terminal(digits, tmp_path):
    data = ("--data", digits / "calibration.npz", *QUICK, "--latency-batch", 1)
    done = command("quantize", digits / "model.onnx", *data, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "latency" in done.stdout


def write_plugin(folder, name, module, source=None):
    information = folder / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
    (information / "entry_points.txt").write_text(f"[isobit]\n{name} = {module}\n", "utf-8")
    if source is not None:
        (folder / f"{module}.py").write_text(source, "utf-8")


LACKING = """
from isobit.plugins import hookimpl

class Lacking:
    name, framework, install, suffixes = "lacking", "no_such_framework", "pip install lacking[framework]", (".lack",)
    def accepts(self, model):
        return 0
    def open(self, model, example_inputs=None):
        raise ImportError("no_such_framework")
    def restore(self, state):
        raise ImportError("no_such_framework")

@hookimpl
def isobit_backends():
    return [Lacking()]
"""


def test_broken_and_lacking_plugins_are_shown(tmp_path):
    write_plugin(tmp_path, "wrecked", "wrecked_plugin", "raise RuntimeError('it is wrecked')")
    write_plugin(tmp_path, "lacking", "lacking_plugin", LACKING)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = command("backends", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "wrecked of wrecked 1.0: RuntimeError: it is wrecked" in done.stdout
    assert "not installed" in done.stdout
    assert "to repair 'lacking': pip install lacking[framework]" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert any(row[:3] == ["wrecked", "1.0", "wrecked"] and row[-1] == "broken" for row in rows if len(row) > 3)
