"""Valid files of every kind that isobit reads, made in the test run."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

import isobit
from isobit.quantsim.encodings_files import write_encodings
from isobit.techniques import CorrectBias, EqualizeCrossLayers, FoldBatchNorms
from isobit.testing.networks import NETWORKS
from isobit_onnx.reference_networks import build_onnx

#: The network whose encodings, statistics and saved simulators are read.
NETWORK = "conv_net"

_MODELS = ("conv_net", "upsampler", "attention", "recurrent")

_SUNDRY = """
<ir_version: 8, opset_import: ["" : 17]>
sundry (float[batch, 4, 6] x) => (float[batch, rows, columns] y, float[k] top)
<int64[1] axes = {1}, int64[3] shape = {0, -1, 4}, int64[1] start = {0}, int64[1] end = {5}, int64[1] last = {2},
 float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}, float[1] slope = {0.1}, int64[1] two = {2},
 int64[6] pads = {0, 0, 0, 0, 0, 2}, float low = {-1}, float high = {1}, int64[2] picks = {0, 1}, bool cond = {1}>
{
  s = Slice(x, start, end, last)
  p = Pad(s, pads)
  g = Gather <axis = 2> (p, picks)
  c = Concat <axis = 2> (g, s)
  r = Reshape(x, shape)
  t = Transpose <perm = [0, 2, 1]> (r)
  m = MatMul(r, w)
  e = Einsum <equation = "bij,jk->bik"> (m, w)
  q = PRelu(e, slope)
  k = Clip(q, low, high)
  l, h = Split <axis = 2> (k)
  a = Add(l, h)
  mean = ReduceMean <axes = [2], keepdims = 1> (k)
  d = Sub(k, mean)
  sq = Mul(d, d)
  i = If (cond) <
    then_branch = then () => (float[batch, n, o] z) { z = Relu(sq) },
    else_branch = other () => (float[batch, n, o] z) { z = Sigmoid(sq) }
  >
  y = Softmax <axis = -1> (i)
  flat = Flatten <axis = 0> (c)
  row = Squeeze(flat, start)
  top, indices = TopK <axis = 0> (row, two)
}
"""


def write_seeds(folder: Path) -> dict[str, list[Path]]:
    """Write the files into `folder`; their paths by kind."""
    network = NETWORKS[NETWORK]()
    batch = network.batch(2)
    model = folder / f"{NETWORK}.onnx"
    for name in _MODELS:
        onnx.save(build_onnx(NETWORKS[name]()), folder / f"{name}.onnx")
    onnx.save(onnx.parser.parse_model(_SUNDRY), folder / "sundry.onnx")
    _with_external_data(folder)
    seeds = {"onnx": [folder / f"{name}.onnx" for name in (*_MODELS, "sundry", "external")]}

    sim = isobit.quantize(model, [batch])
    sim.export(folder / "exported", encodings_formats="aimet-1.0.0")
    seeds["qdq"] = [folder / "exported" / "model.qdq.onnx"]
    formats = ("isobit", "aimet-0.6.1", "aimet-1.0.0", "aimet-2.0.0")
    seeds["encodings"] = [folder / f"{name}.json" for name in formats]
    for name, path in zip(formats, seeds["encodings"], strict=True):
        write_encodings(sim.encodings, path, name, sim)

    edited = isobit.quantize(model, [batch], techniques=[FoldBatchNorms(), EqualizeCrossLayers(), CorrectBias()])
    edited.save(folder / "edited.isobit")
    edited.freeze([next(iter(edited.encodings))])
    edited.save(folder / "frozen.isobit")
    seeds["simulators"] = [folder / "edited.isobit", folder / "frozen.isobit"]

    plain = isobit.QuantSim(model, target="onnxruntime-cpu")
    plain.calibrate([batch])
    plain.save_statistics(folder / "plain.npz")
    channels = isobit.QuantSim(model)
    channels.observe(CorrectBias(), EqualizeCrossLayers(), data=[batch])
    channels.save_statistics(folder / "observed.npz")
    seeds["statistics"] = [folder / "plain.npz", folder / "observed.npz"]

    core = importlib.resources.files("isobit")
    for kind, names in (("targets", ("default", "onnxruntime-cpu")), ("recipes", ("ptq", "transformer"))):
        seeds[kind] = [folder / f"{kind}-{name}.toml" for name in names]
        for name, path in zip(names, seeds[kind], strict=True):
            path.write_text((core / kind / f"{name}.toml").read_text("utf-8"), "utf-8")
    seeds["data"] = _data_files(folder, batch["image"])
    return seeds


def _with_external_data(folder: Path) -> None:
    model = build_onnx(NETWORKS[NETWORK]())
    onnx.save(
        model, folder / "external.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0,
        convert_attribute=False,
    )  # fmt: skip


def _data_files(folder: Path, images: np.ndarray) -> list[Path]:
    from PIL import Image

    np.savez(folder / "data.npz", image=images, label=np.array([0, 1]))
    np.save(folder / "data.npy", images)
    paths = [folder / "data.npz", folder / "data.npy"]
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20, 3)).astype(np.uint8)
    for suffix in ("png", "jpg", "bmp", "webp"):
        paths.append(folder / f"data.{suffix}")
        Image.fromarray(pixels).save(paths[-1])
    return paths
