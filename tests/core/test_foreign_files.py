"""A path that no backend opens: the error says what lies there and the line that makes a model of it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

import isobit
from isobit.errors import PluginError

FILES = {
    "model.h5": r"keras\.saving\.load_model\('.*model\.h5', compile=False\)",
    "model.HDF5": r"keras\.saving\.load_model\(",
    "model.weights.h5": r"model\.load_weights\('.*model\.weights\.h5'\)",
    "model.pt": r"load_state_dict\(torch\.load\('.*model\.pt', weights_only=True\)\)",
    "model.pth": r"torch\.load\('.*model\.pth'",
    "model.ckpt": r"torch\.load\('.*model\.ckpt'",
    "pytorch_model.bin": r"torch\.load\('.*pytorch_model\.bin'",
    "model.pt2": r"torch\.export\.load\('.*model\.pt2'\)\.module\(\)",
    "model.safetensors": r"safetensors\.torch\.load_file\('.*model\.safetensors'\)",
    "model.tflite": r"python -m tf2onnx\.convert --tflite .*model\.tflite --output model\.onnx",
    "frozen.pb": r"python -m tf2onnx\.convert --graphdef .*frozen\.pb",
    "model.xyz": "known endings are",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"content")
    for path in (tmp_path / name, str(tmp_path / name)):
        with pytest.raises(PluginError, match=FILES[name]):
            isobit.QuantSim(path)


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"content")
    for path in (tmp_path / "saved", tmp_path / "saved" / "saved_model.pb"):
        with pytest.raises(PluginError, match=r"SavedModel.*tf2onnx\.convert --saved-model \S*saved --output"):
            isobit.quantize(path, [])
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")
    with pytest.raises(PluginError, match=r"transformers\.AutoModel\.from_pretrained\('.*bert'\)"):
        isobit.quantize(tmp_path / "bert", [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(PluginError, match="known endings are"):
        isobit.quantize(tmp_path / "empty", [])


@pytest.mark.parametrize("name", ["model.pt", "model.jit", "model.torchscript.pt", "model.torchscript"])
def test_torchscript_is_told_from_weights(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("model/code/__torch__.py", "")
    with pytest.raises(PluginError, match=r"TorchScript.*torch\.jit\.load\('.*model\.[\w.]+'\)"):
        isobit.quantize(tmp_path / name, [])


def test_nothing_is_there(tmp_path: Path) -> None:
    for name in ("gone.bits", "gone.h5"):
        with pytest.raises(PluginError, match="known endings are .*no such file"):
            isobit.quantize(tmp_path / name, [])


def test_a_folder_of_nothing_known(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="it is a folder, and a model is a file: known endings are"):
        isobit.QuantSim(tmp_path)
