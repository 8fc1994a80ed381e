"""Each tox env holds the frameworks of its variant and no other; what needs another says how to get it."""

from __future__ import annotations

import os
from importlib.metadata import version
from importlib.util import find_spec

import pytest

from isobit.errors import PluginError
from isobit.plugins import registry

ONNX = {"onnx", "onnxruntime", "onnx_ir", "onnxscript"}
INSTALLED = {
    "core": set(),
    "onnx-cpu": ONNX,
    "torch-cpu": ONNX | {"torch"},  # onnxruntime executes there what is exported
    "tensorflow-cpu": ONNX | {"tensorflow", "keras"},
    "plugin": ONNX | {"jax"},
}
ENV = os.environ.get("TOX_ENV_NAME", "")


@pytest.mark.skipif(ENV not in INSTALLED, reason="what is installed here is not said by a tox env")
def test_no_other_framework_is_installed_here():
    everything = set().union(*INSTALLED.values())
    assert {name for name in everything if find_spec(name) is not None} == INSTALLED[ENV]


@pytest.mark.skipif(not ENV.endswith("-cpu"), reason="only envs of a CPU variant hold CPU builds")
def test_a_cpu_variant_holds_cpu_builds():
    for name in ("onnxruntime-gpu", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "triton"):
        with pytest.raises(ModuleNotFoundError):
            version(name)


@pytest.mark.parametrize(
    ("name", "framework"), [("onnx", "onnxruntime"), ("torch", "torch"), ("tensorflow", "tensorflow")]
)
def test_a_missing_framework_is_answered_with_its_command(name, framework):
    backend = registry().backend(name)
    if find_spec(framework) is not None:
        assert backend.name == name
        return
    for ask in (lambda: backend.open("model"), lambda: backend.restore(b"")):
        with pytest.raises(PluginError, match=rf'backend \'{name}\' needs .*: pip install "isobit\[{name}-cpu\]"'):
            ask()
