"""Export in a backend's own formats, where the model has any; files are written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy_backend import NumpyModel
from sketch import Sketch

from isobit.backend import NativeExporter
from isobit.canonical import canonicalize
from isobit.encodings import Encodings
from isobit.errors import ModelError, OutputError
from isobit.formats.isobit_json import IsobitJson
from isobit.graph import Weight
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim


class Exporting(NumpyModel):
    """A model with a format that is a file and one that is a folder."""

    @property
    def native_formats(self) -> Mapping[str, str]:
        return {"arrays": "model.npz", "folder": "saved"}

    def write_native(self, form: str, encodings: Encodings, path: Path) -> list[str]:
        integers = {str(s): e.quantize(self.weight(s.name)) for s, e in encodings.items() if isinstance(s, Weight)}
        if form == "folder":
            path.mkdir()
            np.savez(path / "weights.npz", **integers)
            return ["saved is a folder"]
        np.savez(path, **integers)
        return []


def simulator(kind: type[NumpyModel], *, calibrated: bool = True) -> QuantSim:
    sketch = Sketch(0)
    x = sketch.input("x", "N", 8)
    y = sketch.node("Linear", x, sketch.random("fc.w", 4, 8), sketch.random("fc.b", 4), name="fc", shape=("N", 4))
    model = kind(canonicalize(sketch.graph(y)), sketch.values)
    sim = QuantSim.of_backend_model(model, registry().target("default"), QuantConfig())
    if calibrated:
        sim.calibrate(np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32), progress=False)
    return sim


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_model_can_do_is_asked_of_it() -> None:
    assert isinstance(simulator(Exporting).backend_model.inner, NativeExporter)
    assert not isinstance(simulator(NumpyModel).backend_model.inner, NativeExporter)


def test_files_and_folders(tmp_path: Path) -> None:
    sim = simulator(Exporting)
    for _ in range(2):  # the second takes the place of the first
        paths = sim.export(tmp_path, formats=("arrays", "folder"))
    assert list(paths) == ["arrays", "folder", "encodings", "summary"]
    assert names(tmp_path) == ["encodings.json", "model.npz", "saved", "summary.txt"]
    encoding = sim.encodings[Weight("fc.w")]
    for path in (paths["arrays"], paths["folder"] / "weights.npz"):
        np.testing.assert_array_equal(np.load(path)["fc.w"], encoding.quantize(sim.backend_model.weight("fc.w")))
    assert "saved is a folder" in paths["summary"].read_text()
    assert dict(IsobitJson().read(paths["encodings"])) == dict(sim.encodings)


def test_one_format_is_a_name(tmp_path: Path) -> None:
    assert list(simulator(Exporting).export(tmp_path, formats="arrays")) == ["arrays", "encodings", "summary"]


@pytest.mark.parametrize(
    ("kind", "formats", "message"),
    [
        (Exporting, "array", r"no export format 'array' \(did you mean 'arrays'\?\).* onnx, arrays, folder$"),
        (Exporting, ("arrays", "pt2"), r"no export format 'pt2'; this model can be written as onnx, arrays, folder$"),
        (NumpyModel, "arrays", r"no export format 'arrays'; this model can be written as onnx$"),
        (Exporting, (), r"export needs a format: onnx, arrays, folder$"),
    ],
)
def test_unknown_formats(kind: type[NumpyModel], formats: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=message):
        simulator(kind).export(tmp_path / "out", formats=formats)
    assert names(tmp_path) == []


def test_not_calibrated(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="calibrate first"):
        simulator(Exporting, calibrated=False).export(tmp_path, formats="arrays")


def test_a_format_that_fails_leaves_no_other_behind(tmp_path: Path) -> None:
    sim = simulator(Exporting)
    sim.export(tmp_path, formats="arrays")
    before = (tmp_path / "model.npz").read_bytes()

    class Broken(Exporting):
        def write_native(self, form: str, encodings: Encodings, path: Path) -> list[str]:
            if form == "folder":
                super().write_native(form, encodings, path)
                raise ModelError("this model cannot be written")
            return super().write_native(form, encodings, path)

    with pytest.raises(ModelError, match="cannot be written"):
        simulator(Broken).export(tmp_path, formats=("arrays", "folder"))
    assert (tmp_path / "model.npz").read_bytes() == before
    assert names(tmp_path) == ["encodings.json", "model.npz", "summary.txt"]
