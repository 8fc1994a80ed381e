"""Models whose constants, however small, lie in files beside them are exported whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import constant, model, node, runtime, value

import isobit


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
    sim = isobit.quantize(path, x, overrides=overrides, progress=False)
    files = sim.export(tmp_path / "out", encodings_formats="aimet-1.0.0")
    path.with_name("w.bin").unlink()
    np.testing.assert_allclose(runtime(onnx.load(files["float_model"]), {"x": x})["y"], exact, atol=1e-5)
    written = runtime(onnx.load(files["model"]), {"x": x})["y"]
    assert np.linalg.norm(written - exact) < 0.02 * np.linalg.norm(exact)
