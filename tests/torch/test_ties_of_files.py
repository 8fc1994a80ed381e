"""A file of a deep module differs from the simulator by ties that spread, and the summary says so; a fault it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import isobit
from isobit.quantsim import QuantSim
from isobit.quantsim.checks import ties
from isobit.quantsim.checks.ties import first_apart
from isobit.quantsim.export import ExportResult
from isobit_onnx.backend import OnnxBackend

Exported = tuple[QuantSim, ExportResult]


def _exported(depth: int, channels: int, seed: int, folder: Path) -> Exported:
    torch.manual_seed(seed)
    layers = [layer for _ in range(depth) for layer in (nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    x = torch.randn(16, channels, 32, 32)
    sim = isobit.quantize(nn.Sequential(*layers), x, recipe="basic", method="minmax", progress=False)
    return sim, sim.export(folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return _exported(10, 16, 0, tmp_path_factory.mktemp("deep"))


#: Deep and wide enough that PyTorch and onnxruntime add in different orders on AVX2 and on AVX-512.
DEPTH, CHANNELS = 20, 24


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The first tie is behind the first layer."""
    return _exported(DEPTH, CHANNELS, 1, tmp_path_factory.mktemp("deeper"))


def first(sim: QuantSim, file: Path, outputs: Sequence[Any] = ()) -> str:
    reference = sim.simulation.reference
    assert reference is not None
    return first_apart(sim.backend_model, file, reference[0], OnnxBackend(), outputs)


def _changed(file: Path, number: int) -> onnx.ModelProto:
    """A model with the weight of one layer a tenth too large, as a layer computed otherwise would be."""
    model = onnx.load(file)
    conv = [node for node in model.graph.node if node.op_type == "Conv"][number]
    read = {node.output[0]: node for node in model.graph.node}[conv.input[1]]
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == read.input[1])
    scale.CopyFrom(numpy_helper.from_array(np.float32(1.1) * numpy_helper.to_array(scale), scale.name))
    return model


def test_ties_that_spread_are_counted(tied: Exported) -> None:
    result = tied[1]
    check = result.checks[0]
    assert check.equal < 0.99
    assert "in the middle of two levels" in check.remark
    assert check.remark in result["summary"].read_text("utf-8")
    count = int(check.remark.split("begins with ")[1].split(" of ")[0].replace(",", ""))
    assert 1 <= count <= 60  # of 393,216 values of a layer


def test_a_fault_is_no_tie(exported: Exported, tmp_path: Path) -> None:
    sim, result = exported
    onnx.save(_changed(result["model"], number=0), tmp_path / "model.onnx")
    assert "before they are rounded: no ties" in first(sim, tmp_path / "model.onnx")


def test_the_samples_that_differ_are_looked_at(exported: Exported, tmp_path: Path) -> None:
    """Those that the outputs name, or all where the first two are alike: nothing differs where all values are zero."""
    sim, result = exported
    onnx.save(_changed(result["model"], number=0), tmp_path / "model.onnx")
    ((name, values),) = sim.simulation.reference[0].items()
    batch = {name: values * (np.arange(len(values)) >= len(values) - 2).reshape(-1, 1, 1, 1).astype(np.float32)}
    simulated = sim.run(batch)
    apart = {
        key: value * np.where(np.arange(len(value)) >= len(value) - 2, 1.1, 1).reshape(-1, 1, 1, 1)
        for key, value in simulated.items()
    }
    backend = OnnxBackend()
    named = first_apart(sim.backend_model, tmp_path / "model.onnx", batch, backend, [simulated, apart])
    assert "in 2 of 16 samples, " in named
    assert "no ties" in named
    unnamed = first_apart(sim.backend_model, tmp_path / "model.onnx", batch, backend)
    assert "samples" not in unnamed
    assert "no ties" in unnamed


def test_runs_are_bounded(tied: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples that differ, a tensor at a time, a few times, and the file is read once."""
    sim, result = tied
    batch = sim.simulation.reference[0]
    outputs = [sim.run(batch), OnnxBackend().run_written(result["model"], batch)[0].outputs]
    read: list[object] = []
    load = onnx.load
    monkeypatch.setattr(onnx, "load", lambda *args: read.append(args) or load(*args))
    monkeypatch.setattr(ties, "_TOGETHER", 1)
    found = first(sim, result["model"], outputs)
    assert f" of {2 * CHANNELS * 32 * 32:,} values of " in found
    assert " in 2 of 16 samples, all in the middle" in found
    assert len(read) == 1
    monkeypatch.setattr(ties, "_MOST_ROUNDS", 1)
    assert first(sim, result["model"], outputs) == (
        f"where it begins was not found in 2 of 16 samples: it was not looked for behind the first 1 of {DEPTH} tensors"
    )
    assert len(read) == 2
    monkeypatch.setattr(OnnxBackend, "rounded", lambda *args: iter(()))
    assert first(sim, result["model"], outputs) == ""


def test_the_same_file_says_nothing_where_all_is_equal(tmp_path: Path) -> None:
    """The simulator of an ONNX file runs in the same runtime."""
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    weight = numpy_helper.from_array(np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32), "w")
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 8]) for name in "xy"]
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    sim = isobit.quantize(model, x, recipe="basic", method="minmax", progress=False)
    result = sim.export(tmp_path)
    assert result.checks[0].equal == 1
    assert first(sim, result["model"]) == ""


class Choosing(nn.Module):
    """Features of the rows or classes with the best scores, where several scores are equal."""

    def __init__(self, choose: str) -> None:
        super().__init__()
        self.score, self.behind, self.choose = nn.Linear(8, 4), nn.Linear(8, 16), choose
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.score(x).sum(-1)
        if self.choose == "topk":
            picked = scores.topk(5, dim=1).indices
        else:
            picked = (-scores).sort(dim=1, descending=True).indices[:, :5]
        return self.behind(x.gather(1, picked[..., None].expand(-1, -1, 8))).relu()


@pytest.mark.parametrize("choose", ["topk", "sort"])
def test_a_choice_between_equal_values_is_named(tmp_path: Path, choose: str) -> None:
    """torch.topk and onnxruntime's TopK pick others of equal scores; what follows is another row of the input."""
    torch.manual_seed(0)
    x = torch.randn(4, 200, 8)
    sim = isobit.quantize(Choosing(choose), x, recipe="basic", method="minmax", progress=False)
    result = sim.export(tmp_path)
    check = result.checks[0]
    assert check.equal < 0.99
    assert "results of TopK" in check.remark
    assert "equal but for the last bits of floats" in check.remark
    assert check.remark in result["summary"].read_text("utf-8")


def test_another_choice_between_unequal_values_is_not_called_a_tie(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Choosing("topk")
    nn.init.normal_(module.score.weight)
    sim = isobit.quantize(module, torch.randn(4, 200, 8), recipe="basic", method="minmax", progress=False)
    model = onnx.load(sim.export(tmp_path)["model"])
    chooser = next(node for node in model.graph.node if node.op_type == "TopK")
    next(attribute for attribute in chooser.attribute if attribute.name == "largest").i = 0
    onnx.save(model, tmp_path / "other.onnx")
    assert "chooses" not in first(sim, tmp_path / "other.onnx")
