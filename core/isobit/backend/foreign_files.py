"""Files that no backend opens by their path: what each holds, and the line that makes a model of it."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping

_HDF5 = "isobit.quantize(keras.saving.load_model({path}, compile=False), data)"
_TF2ONNX = "python -m tf2onnx.convert --{kind} {path} --output model.onnx"
_CHECKPOINT = "python -m tf2onnx.convert --checkpoint {path} --output model.onnx --inputs NAME:0 --outputs NAME:0"
_SOURCE = "quantize the model that it was made from"
_STATE = "module.load_state_dict({load}), then isobit.quantize(module.eval(), data)"

#: What an ending says of a file, and the line that loads it; the longest ending counts.
_BY_ENDING: Mapping[str, tuple[str, str]] = {
    ".weights.h5": (
        "holds the weights of a Keras model alone",
        "build the model, then model.load_weights({path}) and isobit.quantize(model, data)",
    ),
    ".h5": ("is a Keras file of the older format (HDF5)", _HDF5),
    ".hdf5": ("is a Keras file of the older format (HDF5)", _HDF5),
    ".pt2": ("is a program of torch.export", "isobit.quantize(torch.export.load({path}).module(), data)"),
    ".pt": ("", ""),
    ".pth": ("", ""),
    ".jit": ("", ""),
    ".torchscript": ("", ""),
    ".ckpt": ("", ""),
    ".bin": ("", ""),
    ".safetensors": ("holds weights alone", _STATE.format(load="safetensors.torch.load_file({path})")),
    ".tflite": ("is a TensorFlow Lite model", _TF2ONNX.format(kind="tflite", path="{path}")),
    ".meta": ("is the graph of a TensorFlow checkpoint", _CHECKPOINT),
    ".pdmodel": (
        "is a Paddle model",
        "paddle2onnx --model_dir FOLDER --model_filename {path} --params_filename PARAMETERS --save_file model.onnx",
    ),
    ".joblib": ("is an object of scikit-learn or its kind", "skl2onnx.to_onnx(joblib.load({path}), data[:1])"),
    ".pkl": ("is a pickled object", "load it as its documentation says, from a source you trust, and pass the model"),
    ".xml": ("is a model of OpenVINO", _SOURCE),
    ".mlmodel": ("is a model of Core ML", _SOURCE),
    ".engine": ("is compiled by TensorRT for one GPU", _SOURCE),
    ".plan": ("is compiled by TensorRT for one GPU", _SOURCE),
    ".gguf": ("holds weights for llama.cpp, without a network", _SOURCE),
    ".pb": (
        "is a frozen TensorFlow graph",
        _TF2ONNX.format(kind="graphdef", path="{path}") + " --inputs NAME:0 --outputs NAME:0",
    ),
}


#: What the first bytes say of a file whose ending says nothing, as the ending that says the same.
_BY_CONTENT: Mapping[bytes, str] = {
    b"\x89HDF": ".h5",
    b"GGUF": ".gguf",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19": ".pt",  # torch.save before version 1.6
}


def advice(path: str | os.PathLike[str]) -> str:
    """What lies at a path, and how it becomes a model that a backend opens; empty where nothing is known of it."""
    text = os.fspath(path)
    what, line = _folder(text) if os.path.isdir(text) else _file(text)
    return f"it {what}: {line}" if what else ""


def _folder(path: str) -> tuple[str, str]:
    entries = set(os.listdir(path))
    if "saved_model.pb" in entries:
        return "is a TensorFlow SavedModel, which has no layers to read", _TF2ONNX.format(kind="saved-model", path=path)
    graphs = sorted(name for name in entries if name.endswith(".meta"))
    if graphs:
        return "is a TensorFlow checkpoint", _CHECKPOINT.format(path=os.path.join(path, graphs[-1]))
    if any(name.endswith(".index") for name in entries):
        line = "build the model, then tf.train.Checkpoint(model=model).restore(...) and isobit.quantize(model, data)"
        return "is a TensorFlow checkpoint without its graph", line
    if "model_index.json" in entries:
        line = "load one of its networks, a folder each, by its class: isobit.quantize(unet.eval(), data)"
        return "is a pipeline of diffusers", line
    if "config.json" in entries and any(name.endswith(".weights.h5") for name in entries):
        return "is a preset of KerasHub", f"isobit.quantize(keras_hub.models.Backbone.from_preset({path!r}), data)"
    if "config.json" in entries:
        line = f"isobit.quantize(transformers.AutoModel.from_pretrained({path!r}).eval(), data)"
        return "is a model folder of transformers", line
    return "", ""


def _file(path: str) -> tuple[str, str]:
    if os.path.basename(path) == "saved_model.pb":
        return _folder(os.path.dirname(path) or ".")
    ending = max((end for end in _BY_ENDING if path.lower().endswith(end)), key=len, default="") or _by_content(path)
    if not ending:
        return "", ""
    what, line = _BY_ENDING[ending]
    if not what:
        what, line = _torch_file(path)
    is_command = line.startswith(("python ", "paddle2onnx "))
    return what, line.format(path=path if is_command else repr(path))


def _by_content(path: str) -> str:
    """The ending that says what a file holds; empty where its first bytes tell nothing."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return ".pt" if any(name.endswith("/data.pkl") for name in archive.namelist()) else ""
    except (OSError, ValueError, zipfile.BadZipFile):
        return ""
    return next((ending for magic, ending in _BY_CONTENT.items() if start.startswith(magic)), "")


def _torch_file(path: str) -> tuple[str, str]:
    """A module, weights or TorchScript: the archive tells the last from the others."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                line = "torch.onnx.export(torch.jit.load({path}), example_inputs, 'model.onnx', dynamo=False)"
                return "is a TorchScript archive, which has no module to read", line
    state = _STATE.format(load="torch.load({path}, weights_only=True)")
    module = "isobit.quantize(torch.load({path}, weights_only=False).eval(), data) for a module from a source you trust"
    return "is a PyTorch file", f"{state}, where it holds weights; {module}"
