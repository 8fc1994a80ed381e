"""`isobit transfer`: encodings of one file for another export of the same network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from isobit.formats.isobit_json import IsobitJson
from isobit.quantsim import QuantSim
from isobit.testing.networks import NETWORKS
from isobit_onnx.reference_networks import build_onnx


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model, the same under other names, and encodings of the first."""
    network = NETWORKS["shared_weights"]()
    model = build_onnx(network)
    onnx.save(model, tmp_path / "a.onnx")
    for node in model.graph.node:
        node.name = f"n/{node.name}"
        node.input[:] = [f"t/{name}" for name in node.input]
        node.output[:] = [f"t/{name}" for name in node.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = f"t/{value.name}"
    onnx.save(model, tmp_path / "b.onnx")
    sim = QuantSim(tmp_path / "a.onnx")
    sim.calibrate([network.batch(4)])
    IsobitJson().write(sim.encodings, tmp_path / "a.json")
    return tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "a.json"


def test_writes_the_encodings_of_the_other_file(files: tuple[Path, Path, Path], isobit: Callable) -> None:
    source, target, encodings = files
    out = target.parent / "b.json"
    result = isobit("transfer", encodings, "--source", source, "--target", target, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "10 encodings for" in result.stdout
    before, after = IsobitJson().read(encodings), IsobitJson().read(out)
    assert after["t/fc1.weight"] == before["fc1.weight"]
    assert len(after) == len(before)


def test_what_found_no_place(files: tuple[Path, Path, Path], isobit: Callable) -> None:
    source, target, encodings = files
    out = target.parent / "b.json"
    odd = json.loads(encodings.read_text("utf-8"))
    odd["encodings"].append({**odd["encodings"][0], "name": "gone"})
    encodings.write_text(json.dumps(odd), "utf-8")
    arguments = ["transfer", encodings, "--source", source, "--target", target, "-o", out]
    result = isobit(*arguments)
    assert result.exit_code == 1
    assert "gone: the source has no such site" in result.stdout
    assert "nothing was written; --partial" in " ".join(result.stderr.split())
    assert not out.exists()
    assert isobit(*arguments, "--partial", "--json").exit_code == 0
    assert len(IsobitJson().read(out)) == 10


def test_another_network(files: tuple[Path, Path, Path], isobit: Callable) -> None:
    source, target, encodings = files
    onnx.save(build_onnx(NETWORKS["conv_net"]()), target)
    result = isobit("transfer", encodings, "--source", source, "--target", target, "-o", target.parent / "b.json")
    assert result.exit_code == 1
    assert "none of the 10 encodings has a place in the target" in " ".join(result.stderr.split())
