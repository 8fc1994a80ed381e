"""A saved simulator comes back on its float model to the last bit, and on no other model."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

import isobit
from isobit.errors import ModelError
from isobit.testing.networks import NETWORKS
from isobit_onnx.reference_networks import build_onnx


@pytest.fixture
def network():
    return NETWORKS["pre_activation"]()


@pytest.fixture
def sim(network):
    data = [network.batch(4, seed=seed) for seed in range(3)]
    return isobit.quantize(
        build_onnx(network), data, method="percentile=99.9", weights="int4", overrides={"fc.weight": None}
    )


def test_round_trip(tmp_path, network, sim):
    path = tmp_path / "net.isobit"
    sim.freeze(list(sim.encodings)[:2])
    sim.save(path)
    sim.thaw()
    loaded = isobit.load(path, build_onnx(network))
    assert set(loaded.frozen) == set(list(sim.encodings)[:2])
    loaded.thaw()
    batch = network.batch(5, seed=9)
    np.testing.assert_array_equal(loaded.run(batch)["features"], sim.run(batch)["features"])
    assert dict(loaded.encodings) == dict(sim.encodings)
    assert loaded.plan == sim.plan
    assert "percentile=99.9" in str(loaded.report)
    loaded.recalibrate("minmax")
    sim.recalibrate("minmax")
    assert dict(loaded.encodings) == dict(sim.encodings)
    written = loaded.export(tmp_path / "out")
    assert written["model"].read_bytes() == sim.export(tmp_path / "again")["model"].read_bytes()


def test_the_file_holds_no_unchanged_weight(tmp_path, network, sim):
    sim.save(tmp_path / "net.isobit")
    with zipfile.ZipFile(tmp_path / "net.isobit") as archive:
        assert set(archive.namelist()) == {
            "manifest.json", "target.toml", "weights.safetensors", "encodings.json", "frozen.json", "statistics.npz",
        }  # fmt: skip
        assert network.weights["padded.weight"].tobytes() not in archive.read("weights.safetensors")


def test_another_model_is_refused_by_what_differs(tmp_path, network, sim):
    sim.save(tmp_path / "net.isobit")
    network.weights["padded.weight"][0, 0, 0, 0] += 1
    with pytest.raises(ModelError, match=r"padded\.weight"):
        isobit.load(tmp_path / "net.isobit", build_onnx(network))
    with pytest.raises(ModelError, match="another model"):
        isobit.load(tmp_path / "net.isobit", build_onnx(NETWORKS["conv_net"]()))


@pytest.mark.parametrize("damage", ["missing", "text", "truncated", "manifest"])
def test_damaged_files(tmp_path, network, sim, damage):
    path = tmp_path / "net.isobit"
    sim.save(path)
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("not a zip")
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("manifest.json", '{"format": "isobit sim", "version": 99}')
    with pytest.raises(ModelError, match=r"net\.isobit"):
        isobit.load(path, build_onnx(network))
