"""The README's first command, as a stranger runs it: from the built wheel, then literally, then its result elsewhere.

Run by ``tox -e quickstart`` in an environment that holds the built wheel with its extra ``onnx-cpu`` and nothing else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 0.005  # accuracy that INT8 may lose: half a point

COPIED = ("core", "backends", "examples", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")

DEPLOYED = """
import sys
from importlib.util import find_spec

import numpy as np
import onnxruntime

foreign = [name for name in ("isobit", "isobit_onnx", "onnx", "onnx_ir", "torch", "numba") if find_spec(name)]
assert not foreign, f"installed here: {foreign}"
model, test = sys.argv[1:]
with np.load(test) as file:
    image, label = file["image"], file["label"]
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")  # or processors without VNNI saturate
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
(logits,) = session.run(["logits"], {"image": image})
print(np.mean(logits.argmax(1) == label))
"""


def first_command() -> str:
    """The README's first sh block."""
    text = (ROOT / "README.md").read_text("utf-8")
    return text.split("```sh\n", 1)[1].split("```", 1)[0].strip()


def run(command: str, folder: Path) -> None:
    """Run a line of shell with this environment's programs first; leave with its output if it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    print(f"$ {command}", flush=True)
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env={**os.environ, "PATH": path}, check=True
    )


def accuracy(python: Path, model: Path, test: Path) -> float:
    """Top-1 accuracy of a model file in the environment of `python`."""
    command = [python, "-c", DEPLOYED, model, test]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def copy_repository(folder: Path) -> None:
    """What a checkout holds that an installation needs."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*", "out"))
        else:
            shutil.copy(ROOT / name, folder / name)


def runtime_environment(folder: Path, constraints: Path) -> Path:
    """The Python of a new environment that holds onnxruntime and what it brings."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", constraints, "onnxruntime", "numpy"], check=True)
    return python


def main() -> None:
    """Leaves with a non-zero code when a step fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraints", type=Path, required=True)
    constraints = parser.parse_args().constraints
    command = first_command()
    install, _, quantize = command.partition(" && ")
    assert install.startswith("pip install"), f"the README's first command installs, then quantizes: {command}"
    assert quantize.startswith("isobit quantize"), quantize

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        wheel_run, checkout = scratch / "wheel", scratch / "checkout"
        shutil.copytree(ROOT / "examples" / "digits", wheel_run / "examples" / "digits")
        run(quantize, wheel_run)  # the wheel that tox installed; no source beside it
        checkout.mkdir()
        copy_repository(checkout)
        run(command, checkout)  # to the letter, an editable install included

        python = runtime_environment(scratch / "runtime", constraints)
        test = checkout / "examples" / "digits" / "test.npz"
        exact = accuracy(python, checkout / "examples" / "digits" / "model.onnx", test)
        for folder in (wheel_run, checkout):
            quantized = accuracy(python, folder / "out" / "model.qdq.onnx", test)
            if quantized < exact - LIMIT:
                sys.exit(f"accuracy of the exported model is {quantized:.4f}, of the float model {exact:.4f}")
        print(f"with onnxruntime alone: float {100 * exact:.2f} %, exported {100 * quantized:.2f} %")


if __name__ == "__main__":
    main()
