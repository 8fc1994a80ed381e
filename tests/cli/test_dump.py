"""`isobit dump`, and `isobit diff` of what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import isobit as library
from isobit.quantsim import read_encodings


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved simulator of the digits network."""
    folder = Path(__file__).parents[2] / "examples" / "digits"
    path = tmp_path_factory.mktemp("saved") / "digits.isobit"
    with np.load(folder / "calibration.npz") as archive:
        library.quantize(folder / "model.onnx", archive["image"][:16], method="minmax").save(path)
    return path


def test_quantize_writes_the_simulator_that_dump_reads(isobit, digits, tmp_path):
    path, data = tmp_path / "saved.isobit", ("--data", digits / "calibration.npz")
    options = ("--samples", 16, "--method", "minmax", "--latency-batch", 0, "--save-simulator", path)
    result = isobit("quantize", digits / "model.onnx", *data, *options, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    result = isobit("dump", digits / "model.onnx", *data, "--simulator", path, "-o", tmp_path / "dump.npz")
    assert "as quantizers make them" in result.stdout
    sim = library.load(path, digits / "model.onnx")
    assert dict(sim.encodings) == dict(read_encodings(tmp_path / "out" / "encodings.json", sim))


def test_two_dumps_are_compared(isobit, digits, saved, tmp_path):
    paths = {}
    for kind, options in (("simulated", ()), ("float", ("--float",))):
        paths[kind] = tmp_path / f"{kind}.npz"
        arguments = ("--data", digits / "calibration.npz", "--simulator", saved, *options, "-o", paths[kind])
        result = isobit("dump", digits / "model.onnx", *arguments)
        assert result.exit_code == 0, result.output
    assert "as quantizers make them" not in result.stdout
    result = isobit("diff", paths["float"], paths["simulated"])
    assert result.exit_code == 1
    assert "tensors differ, in the order in which they are computed" in result.stdout
    answer = json.loads(isobit("diff", paths["float"], paths["simulated"], "--json").stdout)
    by_name = {record["tensor"]: record for record in answer["differences"]}
    assert 0 < by_name["image"]["steps"] <= 0.51, "pixels are moved by half a step"
    assert 20 < by_name["node_linear"]["decibels"] < 60
    same = isobit("diff", paths["float"], paths["float"])
    assert (same.exit_code, same.stdout.split(":")[0]) == (0, "the same")


def test_a_part_of_the_tensors(isobit, digits, tmp_path):
    arguments = ("dump", digits / "model.onnx", "--data", digits / "calibration.npz", "-o", tmp_path / "d.npz")
    answer = json.loads(isobit(*arguments, "--only", "node_lin*", "--samples", 2, "--json").stdout)
    assert {name: found["shape"] for name, found in answer["tensors"].items()} == {"node_linear": [2, 10]}
    refused = isobit(*arguments, "--only", "node_linaer")
    assert refused.exit_code == 1
    assert "no tensor or node is called 'node_linaer' (did you mean 'node_linear'?)" in refused.stderr
    refused = isobit("diff", tmp_path / "d.npz", digits / "model.onnx")
    assert (refused.exit_code, "not a layer dump" in refused.stderr) == (2, True)
