from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from isobit.errors import ModelError
from isobit.quantsim import QuantSim, read_encodings
from isobit.quantsim.quantize import quantize

QUICK = ("--samples", 32, "--latency-batch", 0)
ONE_SCHEME = (*QUICK, "--method", "minmax")  # where it does not matter which is best


@pytest.fixture
def calibration(tmp_path, images):
    np.savez(tmp_path / "calibration.npz", image=images)
    return tmp_path / "calibration.npz"


def test_the_main_job(isobit, digits, tmp_path):
    out = tmp_path / "out"
    result = isobit(
        *("quantize", digits / "model.onnx", "--data", digits / "calibration.npz"),
        *("--evaluate", digits / "test.npz", "-o", out),
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["encodings.json", "model.qdq.onnx", "summary.txt"]
    for text in ("FP32", "uint8 x int8", "accuracy, simulated", "accuracy, exported file", "model size", "latency"):
        assert text in result.stdout
    assert "99.72 %" in result.stdout
    assert "top-1 of output 'logits' over 360 samples" in result.stdout
    assert "interleaved rounds, batch 8" in result.stdout
    assert "thread(s), onnxruntime" in result.stdout
    assert str(out / "model.qdq.onnx") in result.stdout
    assert result.stderr == ""


def test_json_holds_the_same_and_nothing_else(isobit, digits, tmp_path):
    result = isobit(
        *("quantize", digits / "model.onnx", "--data", digits / "calibration.npz", "--json"),
        *("--evaluate", digits / "test.npz", "-o", tmp_path / "out", "--latency-batch", 2, "--threads", 1),
    )
    data = json.loads(result.stdout)
    assert data["formats"] == "uint8 x int8"
    evaluation = data["evaluation"]
    assert evaluation["samples"] == 360
    assert evaluation["float_accuracy"] == pytest.approx(359 / 360)
    for where in ("simulated_accuracy", "exported_accuracy"):
        assert abs(evaluation[where] - evaluation["float_accuracy"]) <= 0.005
    assert evaluation["sqnr"]["logits"] > 30
    assert data["float_bytes"] == (digits / "model.onnx").stat().st_size
    assert data["quantized_bytes"] == (tmp_path / "out" / "model.qdq.onnx").stat().st_size
    assert data["quantized_bytes"] < 0.5 * data["float_bytes"]
    assert (data["latency"]["batch"], data["latency"]["threads"]) == (2, 1)
    assert data["latency"]["quantized_ms"] > 0
    assert data["files"]["encodings"] == str(tmp_path / "out" / "encodings.json")


def test_formats_overrides_and_exclusions_arrive(isobit, digits, calibration, tmp_path):
    result = isobit(
        *("quantize", digits / "model.onnx", "--data", calibration, "-o", tmp_path / "out", *QUICK),
        *("--weights", "int4", "--activations", "uint16", "--target", "default", "--backend", "onnx"),
        *("--override", "stem*=int8", "--override", "classifier.*=float", "--exclude", "GlobalAveragePool"),
        *("--method", "percentile=99.9", "--batch-size", 8),
    )
    assert result.exit_code == 0, result.output
    assert "uint16 x int4/int8" in result.stdout or "uint16 x int8/int4" in result.stdout
    assert "classifier.weight, classifier.bias: float by your override" in result.stdout
    assert "the first 32 of 40 samples are used" in result.stdout
    summary = (tmp_path / "out" / "summary.txt").read_text("utf-8")
    assert "percentile=99.9" in summary
    assert "accuracy" not in result.stdout
    assert "latency" not in result.stdout


def test_many_floats_are_capped(isobit, digits, calibration, tmp_path):
    result = isobit(
        *("quantize", digits / "model.onnx", "--data", calibration, "-o", tmp_path / "out", *ONE_SCHEME),
        *("--exclude", "Conv", "--exclude", "Clip"),
    )
    assert result.exit_code == 0, result.output
    assert f"more, in {tmp_path / 'out' / 'summary.txt'}" in result.stdout
    assert result.stdout.count("excluded by you") + result.stdout.count("stays in float") <= 8


def test_the_command_does_what_the_library_does(isobit, digits, calibration, images, tmp_path):
    model = digits / "model.onnx"
    arguments = ("--data", calibration, "-o", tmp_path / "out", "--method", "entropy", "--latency-batch", 0)
    assert isobit("quantize", model, *arguments).exit_code == 0
    opened = QuantSim(model, target="onnxruntime-cpu")
    sim = quantize(opened, images, method="entropy")
    assert sim is opened
    assert dict(sim.encodings) == dict(quantize(model, images, method="entropy").encodings)
    assert dict(read_encodings(tmp_path / "out" / "encodings.json")) == dict(sim.encodings)
    with pytest.raises(ModelError, match="a QuantSim has its settings already: leave out target"):
        quantize(opened, images, target="default")


def test_no_fold(isobit, digits, calibration, tmp_path):
    result = isobit(
        "quantize", digits / "model.onnx", "--data", calibration, "-o", tmp_path / "out", *ONE_SCHEME, "--no-fold"
    )
    assert result.exit_code == 0, result.output
    assert "BatchNormalization" in (tmp_path / "out" / "summary.txt").read_text("utf-8")


def test_without_labels_agreement_is_reported(isobit, digits, calibration, tmp_path):
    result = isobit(
        "quantize",
        digits / "model.onnx",
        "--data",
        calibration,
        "--evaluate",
        calibration,
        "-o",
        tmp_path / "o",
        *QUICK,
    )
    assert result.exit_code == 0, result.output
    assert "calibration.npz holds no labels, so accuracy was not measured" in result.stdout
    assert "top-1 as FP32, simulated" in result.stdout
    assert "SQNR of logits" in result.stdout
    assert "accuracy," not in result.stdout


def test_images_say_what_is_done_with_them(isobit, digits, images, tmp_path):
    image_class = pytest.importorskip("PIL.Image")
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, image in enumerate(images[:12]):
        image_class.fromarray((image[0] * 255).astype(np.uint8)).save(folder / f"{index:02}.png")
    result = isobit("quantize", digits / "model.onnx", "--data", folder, "-o", tmp_path / "out", "--latency-batch", 0)
    assert result.exit_code == 0, result.output
    assert "12 image(s), resized to 32x32 (bilinear, not cropped), gray, times 1/255, laid out nchw" in result.stdout


def test_non_finite_data_on_request(isobit, digits, images, tmp_path):
    images = images.copy()
    images[33, 0, 0, 0] = np.nan
    np.savez(tmp_path / "nan.npz", image=images)
    arguments = ("quantize", digits / "model.onnx", "--data", tmp_path / "nan.npz", "-o", tmp_path / "out")
    result = isobit(*arguments)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {tmp_path / 'nan.npz'}: input 'image' in batch 1 holds NaN: "
        "clean the data, or pass --ignore-non-finite\n"
    )
    assert not (tmp_path / "out").exists()
    assert isobit(*arguments, "--ignore-non-finite", "--latency-batch", 0).exit_code == 0


def bad_arguments(digits, good):
    model, npz = digits / "model.onnx", good
    return {
        "no such file": (digits / "none.onnx", "--data", npz),
        "no backend opens": (npz, "--data", npz),
        "none.npz: no such file or folder": (model, "--data", digits / "none.npz"),
        "unknown target 'onnxruntime-cpx' (did you mean 'onnxruntime-cpu'?)": (
            *(model, "--data", npz),
            *("--target", "onnxruntime-cpx"),
        ),
        "cannot run activations of type uint4": (
            *(model, "--data", npz),
            *("--target", "onnxruntime-cpu", "--activations", "uint4"),
        ),
        "unknown number type 'itn8'": (model, "--data", npz, "--weights", "itn8"),
        "unknown calibration method 'minmaxx' (did you mean 'minmax'?)": (model, "--data", npz, "--method", "minmaxx"),
        "override 'zzz' matches no tensor": (model, "--data", npz, "--override", "zzz=int8"),
        "exclude 'Convv' matches no node": (model, "--data", npz, "--exclude", "Convv"),
        "no backend 'onx' (did you mean 'onnx'?)": (model, "--data", npz, "--backend", "onx"),
        "--mean is for images": (model, "--data", npz, "--mean", "0.5"),
        "holds NaN: clean": (model, "--data", npz, "--evaluate", good.parent / "bad.npz"),
        "label 10 is out of range": (model, "--data", npz, "--evaluate", good.parent / "labels.npz"),
        "they must be one whole number a sample": (model, "--data", npz, "--evaluate", good.parent / "halves.npz"),
    }


def test_bad_input_is_one_red_line_and_writes_nothing(isobit, digits, calibration, images, tmp_path):
    bad = images.copy()
    bad[0, 0, 0, 0] = np.nan
    np.savez(tmp_path / "bad.npz", image=bad)
    np.savez(tmp_path / "labels.npz", image=images, label=np.full(40, 10))
    np.savez(tmp_path / "halves.npz", image=images, label=np.full(40, 0.5))
    for message, arguments in bad_arguments(digits, calibration).items():
        result = isobit("quantize", *arguments, "-o", tmp_path / "out")
        assert result.exit_code == 1, message
        lines = result.stderr.splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: ")
        assert message in lines[0]
        assert not (tmp_path / "out").exists(), message


def test_output_that_cannot_be_written_is_found_before_the_work(isobit, digits, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        result = isobit("quantize", digits / "none.onnx", "--data", digits / "none.npz", "-o", out)
        assert result.exit_code == 1
        assert f"cannot write to folder {out}" in result.stderr


def test_files_of_other_names_stay(isobit, digits, calibration, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine", "utf-8")
    assert isobit("quantize", digits / "model.onnx", "--data", calibration, "-o", out, *ONE_SCHEME).exit_code == 0
    assert (out / "mine.txt").read_text("utf-8") == "mine"
    assert len(list(out.iterdir())) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize",),
        ("quantize", "m.onnx", "-o", "out"),
        ("quantize", "m.onnx", "--data", "d.npz", "-o", "out", "--override", "name"),
        ("quantize", "m.onnx", "--data", "d.npz", "-o", "out", "--override", "=int8"),
        ("quantize", "m.onnx", "--data", "d.npz", "-o", "out", "--image-size", "224"),
        ("quantize", "m.onnx", "--data", "d.npz", "-o", "out", "--std", "0"),
        ("quantize", "m.onnx", "--data", "d.npz", "-o", "out", "--batch-size", "0"),
        ("quantize", "m.onnx", "--data", "d.npz", "-o", "out", "--layout", "hwc"),
        ("quantize", "m.onnx", "--data", "d.npz", "-o", "out", "--no-such-option"),
        ("quantise",),
    ],
)
def test_wrong_usage(isobit, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = isobit(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_opened_model_that_differs_is_refused_unless_let_pass(isobit, digits, calibration, tmp_path, monkeypatch):
    from isobit_onnx.model import OnnxModel

    run_given = OnnxModel.run_given

    def with_another_head(self, *arguments):
        return {name: values + 1 for name, values in run_given(self, *arguments).items()}

    monkeypatch.setattr(OnnxModel, "run_given", with_another_head)
    arguments = ("quantize", digits / "model.onnx", "--data", calibration, "-o", tmp_path / "out", *ONE_SCHEME)
    refused = isobit(*arguments)
    assert refused.exit_code == 1
    assert "the opened model is not the model as given: output 'logits'" in refused.stderr
    assert "--no-check" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert isobit(*arguments, "--no-check").exit_code == 0


def test_nothing_quantized_is_a_warning(isobit, digits, calibration, tmp_path):
    result = isobit(
        *("quantize", digits / "model.onnx", "--data", calibration, "-o", tmp_path / "out", *ONE_SCHEME),
        *(word for op in ("Conv", "Clip", "Add", "GlobalAveragePool", "Linear") for word in ("--exclude", op)),
    )
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("warning: nothing was quantized on target 'onnxruntime-cpu' (excluded by you: ")
    assert result.stderr.endswith("): what is written is the float model\n")
    assert result.stderr.count("\n") == 1
    assert "all in float" in result.stdout
    assert "  equal" in result.stdout


def chip(folder, *misspelt):
    """A copy of a built-in target in which these operations are misspelt."""
    import isobit.targets

    path = Path(isobit.targets.__file__).parent / "onnxruntime-cpu.toml"
    text = path.read_text("utf-8").replace('"onnxruntime-cpu"', '"chip"')
    for op in misspelt:
        text = text.replace(f'"{op}"', f'"{op}{op[-1]}"')
    (folder / "chip.toml").write_text(text, "utf-8")
    return folder / "chip.toml"


@pytest.mark.parametrize("misspelt", [("Conv",), ("Linear",), ("Conv", "Linear")])
def test_a_misspelt_op_and_what_it_leaves_are_lines(isobit, digits, calibration, tmp_path, misspelt):
    target = chip(tmp_path, *misspelt)
    result = isobit(
        "quantize",
        digits / "model.onnx",
        "--data",
        calibration,
        "--target",
        target,
        *ONE_SCHEME,
        "-o",
        tmp_path / "out",
    )
    assert result.exit_code == 0, result.output
    for op in misspelt:
        assert f"there is no operation '{op}{op[-1]}' (did you mean '{op}'?)" in result.stderr
        assert f"because target 'chip' runs {op} in float" in result.stderr
    assert "coverage: " in result.stdout
    assert "of the weight bytes" in result.stdout


@pytest.mark.parametrize(
    ("further", "advice"),
    [
        (("--weights", "int2"), ("--recipe", "ptq")),
        (("--weights", "int2", "--recipe", "fast"), ("--recipe", "ptq")),
        (("--weights", "int2", "--method", "minmax", "--no-fold"), ("--method", "auto")),
        (("--weights", "int2 per-tensor", "--activations", "uint2", "--recipe", "ptq"), ("--weights", "int8")),
    ],
)
def test_a_poor_result_names_the_next_command(isobit, digits, calibration, tmp_path, further, advice):
    result = isobit(
        *("quantize", digits / "model.onnx", "--data", calibration, *QUICK),
        *(*further, "--report", report := tmp_path / "report.html", "-o", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    assert "dB, poor" in result.stdout
    lines = result.stdout.splitlines()
    command = lines[lines.index("the result is poor; try") + 1].split()
    assert command[:2] == ["isobit", "quantize"]
    assert command[command.index(advice[0]) + 1] == advice[1]
    assert "target default, calibration" in result.stdout
    kept = [word for word in map(str, QUICK) if word != advice[0]]  # all else stays as it was asked for
    assert {*kept, "--report", str(report)} <= set(command)
