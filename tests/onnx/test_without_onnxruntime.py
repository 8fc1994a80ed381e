"""What works where onnxruntime, or any framework, is not installed or not wanted yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx

WRITE_QDQ = """
import sys
sys.modules["onnxruntime"] = None  # as where it is not installed
from pathlib import Path
from isobit.encodings import Encoding, Encodings
from isobit.graph import Tensor
from isobit.testing.networks import NETWORKS
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.write.write_onnx import write_onnx

class Model:
    network = NETWORKS["conv_net"]()
    graph = network.graph

    def to_onnx(self):
        return write_onnx(self.graph, self.network.weights.__getitem__)

encodings = Encodings({Tensor(sys.argv[2]): Encoding.of("uint8", 0.1)})
notes = OnnxBackend().write_qdq(Model(), encodings, Path(sys.argv[1]))
sys.exit(0 if "onnxruntime is not installed" in notes[0] else str(notes))
"""

LOAD_PLUGIN = """
import sys
import isobit_onnx.plugin
isobit_onnx.plugin.isobit_backends(), isobit_onnx.plugin.isobit_formats()
sys.exit(", ".join({"onnx", "onnx_ir", "onnxscript", "onnxruntime"} & set(sys.modules)) or 0)
"""


def succeeds(code: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_qdq_model_of_another_backend_is_written(tmp_path: Path) -> None:
    succeeds(WRITE_QDQ, str(tmp_path / "model.onnx"), "image")
    ops = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= ops


def test_the_plug_in_loads_no_framework() -> None:
    succeeds(LOAD_PLUGIN)
