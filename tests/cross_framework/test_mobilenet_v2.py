"""Calibrated once in Keras, simulated in Keras, in ONNX and in PyTorch with the same encodings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import load_file

from isobit.testing.parity.comparing import agreement


def test_keras_to_its_onnx_export_and_to_a_pytorch_twin(tmp_path: Path, run_in: Callable[..., None]) -> None:
    folder = Path(__file__).parent
    run_in("tensorflow", folder / "mobilenet_v2_keras.py", tmp_path)
    run_in("torch", folder / "mobilenet_v2_torch.py", tmp_path)
    keras, torch = (json.loads((tmp_path / f"{name}.json").read_text("utf-8")) for name in ("keras", "torch"))
    assert keras["encodings"] > 150
    assert not keras["unmapped"]
    assert not torch["unmapped"]
    assert not torch["missing"]
    assert not torch["missing in onnx"]
    keras_outputs, torch_outputs = load_file(tmp_path / "keras.safetensors"), load_file(tmp_path / "torch.safetensors")
    agreements = {
        name: agreement(keras_outputs["float"], keras_outputs["simulated"], output)
        for name, output in torch_outputs.items()
    }
    print(agreements)
    assert all(measured.kept for measured in agreements.values()), agreements
