"""Models whose constants, however small, lie in files beside them are exported whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import constant, model, node, runtime, value

import isobit
from isobit.formats.names import Names
from isobit.testing.networks import NETWORKS
from isobit_onnx.export.qdq_format import OnnxQdq
from isobit_onnx.reference_networks import build_onnx


@pytest.mark.parametrize("overrides", [{}, {"*": None}])
@pytest.mark.parametrize("threshold", [0, 64, 2048])
@pytest.mark.filterwarnings("ignore:nothing was quantized")
def test_the_export_stands_alone(threshold: int, overrides: dict[str, None], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    proto = model(
        [node("MatMul", "x w", "h"), node("Add", "h b", "r"), node("Reshape", "r s", "y")],
        [value("x", ["n", 32])],
        [value("y", ["n", 2, 16])],
        {"w": rng.standard_normal((32, 32)), "b": rng.standard_normal(32), "s": constant("s", [-1, 2, 16], np.int64)},
    )
    x = rng.standard_normal((16, 32)).astype(np.float32)
    exact = runtime(proto, {"x": x})["y"]
    (tmp_path / "given").mkdir()
    path = tmp_path / "given" / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=threshold)
    sim = isobit.quantize(path, x, recipe="basic", overrides=overrides, progress=False)
    files = sim.export(tmp_path / "out", encodings_formats="aimet-1.0.0")
    path.with_name("w.bin").unlink()
    np.testing.assert_allclose(runtime(onnx.load(files["float_model"]), {"x": x})["y"], exact, atol=1e-5)
    written = runtime(onnx.load(files["model"]), {"x": x})["y"]
    assert np.linalg.norm(written - exact) < 0.02 * np.linalg.norm(exact)


def test_weights_beside_a_written_qdq_model_are_named_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose weights are too many for one file: here the limit is lowered."""
    monkeypatch.setattr("isobit_onnx.export.save_model.PROTOBUF_LIMIT", 0)
    network = NETWORKS["conv_net"]()
    sim = isobit.quantize(build_onnx(network), [network.batch(2)])
    OnnxQdq().write(sim.encodings, tmp_path / "written.onnx", Names.of(sim.backend_model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["written.onnx", "written.onnx.data"]
    loaded = onnx.load(tmp_path / "written.onnx", load_external_data=False)
    places = {entry.value for t in loaded.graph.initializer for entry in t.external_data if entry.key == "location"}
    assert places == {"written.onnx.data"}
    onnxruntime.InferenceSession(tmp_path / "written.onnx", providers=["CPUExecutionProvider"])
