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
    "inference.pdmodel": r"paddle2onnx --model_dir FOLDER --model_filename \S*inference\.pdmodel",
    "forest.joblib": r"skl2onnx\.to_onnx\(joblib\.load\('.*forest\.joblib'\)",
    "model.gguf": "without a network: quantize the model that it was made from",
    "model.engine": "TensorRT",
    "graph.meta": r"tf2onnx\.convert --checkpoint \S*graph\.meta",
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


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["checkpoint", ".meta", ".index", "config.json"], r"TensorFlow checkpoint: python .*--checkpoint \S*\.meta "),
        (["checkpoint", "model-9.index"], r"without its graph: build the model, then tf\.train\.Checkpoint"),
        (["model_index.json", "unet"], "pipeline of diffusers"),
        (["config.json", "model.weights.h5"], r"keras_hub\.models\.Backbone\.from_preset"),
    ],
)
def test_folders_of_several_files(names: list[str], said: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(PluginError, match=said):
        isobit.quantize(tmp_path, [])


def test_what_a_file_holds_is_told_where_its_ending_is_not(tmp_path: Path) -> None:
    """Checkpoints are called .pth.tar, .model or nothing at all."""
    with zipfile.ZipFile(tmp_path / "epoch27.pth.tar", "w") as archive:
        archive.writestr("epoch27/data.pkl", b"")
    torch_file = r"PyTorch file: .*torch\.load"
    with pytest.raises(PluginError, match=torch_file):
        isobit.quantize(tmp_path / "epoch27.pth.tar", [])
    magic = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # of torch.save before version 1.6, as a pickled number
    (tmp_path / "old.model").write_bytes(b"\x80\x02\x8a\x0a" + magic + b".")
    with pytest.raises(PluginError, match=torch_file):
        isobit.quantize(tmp_path / "old.model", [])
    (tmp_path / "weights").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(PluginError, match=r"keras\.saving\.load_model"):
        isobit.quantize(tmp_path / "weights", [])
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("readme", b"")
    with pytest.raises(PluginError, match="known endings are"):
        isobit.quantize(tmp_path / "some.zip", [])


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
