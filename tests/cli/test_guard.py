from __future__ import annotations

import pytest

import isobit.plugins
from isobit.encodings.encoding import Encodings
from isobit.encodings.quant_spec import QuantSpec
from isobit.encodings.ranges import encode_range
from isobit.errors import PluginError
from isobit.formats.isobit_json import IsobitJson
from isobit.graph.sites import Tensor


def fail_with(error, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(isobit.plugins, "registry", fail)


def test_isobit_error_is_one_line(isobit, monkeypatch):
    fail_with(PluginError("a message\nof [bold]two[/bold] lines"), monkeypatch)
    result = isobit("targets")
    assert result.exit_code == 1
    assert result.stderr == "error: a message of [bold]two[/bold] lines\n"
    assert result.stdout == ""


def test_bug_names_the_exception_and_debug(isobit, monkeypatch):
    fail_with(ZeroDivisionError("oops"), monkeypatch)
    result = isobit("targets")
    assert result.exit_code == 70
    assert result.stderr.count("\n") == 1
    assert "unexpected ZeroDivisionError: oops" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [("--debug", "targets"), ("targets", "--debug")])
@pytest.mark.parametrize(("error", "code"), [(PluginError("oops"), 1), (ValueError("oops"), 70)])
def test_debug_shows_the_traceback(isobit, monkeypatch, arguments, error, code):
    fail_with(error, monkeypatch)
    result = isobit(*arguments)
    assert result.exit_code == code
    assert "Traceback (most recent call last)" in result.stderr
    assert "oops" in result.stderr


def test_interruption(isobit, monkeypatch):
    fail_with(KeyboardInterrupt(), monkeypatch)
    result = isobit("targets")
    assert result.exit_code == 130
    assert result.stderr == "interrupted; nothing was written\n"


def test_interruption_after_writing_does_not_deny_it(isobit, digits, tmp_path, monkeypatch):
    from isobit.cli.quantizing.quantize_run import Run

    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "measure_files", interrupt)
    out = tmp_path / "out"
    quick = ("--samples", 8, "--recipe", "basic", "--method", "minmax")
    result = isobit("quantize", digits / "model.onnx", "--data", digits / "calibration.npz", "-o", out, *quick)
    assert result.exit_code == 130
    assert result.stderr == f"interrupted; the files in {out} are complete\n"
    assert (out / "model.qdq.onnx").exists()


def test_interruption_names_all_that_was_written(isobit, tmp_path, monkeypatch):
    encoding = encode_range(-1.0, 1.0, QuantSpec.parse("uint8"))
    source, out, report = (tmp_path / name for name in ("a.json", "b.encodings", "c.html"))
    IsobitJson().write(Encodings({Tensor("x"): encoding}), source)

    def interrupt(*text):
        raise KeyboardInterrupt

    monkeypatch.setattr("isobit.cli.convert.line", interrupt)
    result = isobit("convert", source, out, "--format", "aimet-1.0.0", "--report", report)
    assert result.exit_code == 130
    assert result.stderr.endswith(f"interrupted; the files in {out} and {report} are complete\n")
    assert out.exists()


def test_version_and_help(isobit):
    from isobit.version import __version__

    assert isobit("--version").stdout == f"isobit {__version__}\n"
    for verb in ((), ("quantize",), ("inspect",), ("backends",), ("targets",)):
        result = isobit(*verb, "--help")
        assert result.exit_code == 0
        assert "Usage: " in result.stdout
    assert "Formats" in isobit("quantize", "--help").stdout
