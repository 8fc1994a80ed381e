"""What holds for every command: `--json`, and names that the shell completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.main import get_command

from isobit.cli.application import app

COMMANDS = get_command(app).commands


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_prints_json(verb):
    options = {text for parameter in COMMANDS[verb].params for text in parameter.opts}
    assert "--json" in options


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_breaks_lines_only_where_the_terminal_ends(verb):
    # typer keeps the line breaks of a paragraph, and the terminal adds its own beside them.
    for paragraph in (COMMANDS[verb].help or "").split("\n\n")[1:]:
        assert "\n" not in paragraph.strip()


def test_what_is_written_is_said_in_json(isobit, digits, tmp_path):
    statistics, out, other = tmp_path / "s.npz", tmp_path / "out", tmp_path / "other.encodings"
    data = ("--data", digits / "calibration.npz", "--samples", 32)
    result = isobit("calibrate", digits / "model.onnx", *data, "-o", out, "--write-statistics", statistics, "--json")
    answer = json.loads(result.stdout)
    assert (answer["batches"], answer["tensors"]) == (1, 31)
    assert answer["coverage"]["integer_weight_bytes"] == answer["coverage"]["weight_bytes"] > 0
    assert answer["files"] == {
        "statistics": str(statistics),
        "model": str(out / "model.qdq.onnx"),
        "encodings": str(out / "encodings.json"),
        "summary": str(out / "summary.txt"),
    }
    arguments = (out / "encodings.json", other, "--format", "aimet-1.0.0", "--model", digits / "model.onnx")
    answer = json.loads(isobit("convert", *arguments, "--json").stdout)
    assert (answer["out"], answer["format"], answer["encodings"]) == (str(other), "aimet-1.0.0", 83)
    answer = json.loads(isobit("new-plugin", "acme", "--out", tmp_path, "--json").stdout)
    assert answer == {"folder": str(tmp_path / "isobit-acme")}


@pytest.mark.parametrize(
    ("typed", "completions"),
    [
        ("isobit cal", ["calibrate"]),
        ("isobit quantize m --target onnxruntime-cpu-", ["onnxruntime-cpu-transformer"]),
        ("isobit quantize m --recipe t", ["transformer"]),
        ("isobit quantize m --method per", ["percentile"]),
        ("isobit quantize m --weights uint1", ["uint16"]),
        ("isobit inspect m --backend on", ["onnx"]),
        ("isobit convert a b --format aimet-2", ["aimet-2.0.0"]),
        ("isobit targets def", ["default"]),
    ],
)
def test_the_shell_completes_names(typed, completions):
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_ISOBIT_COMPLETE": "complete_bash"}
    code = "from isobit.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | words, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (completions, "")


@pytest.mark.parametrize("verb", ["quantize", "analyze", "auto"])
def test_a_verb_without_data_says_what_data_is(isobit, digits, tmp_path, verb):
    result = isobit(verb, digits / "model.onnx", *([] if verb == "analyze" else ["-o", tmp_path]))
    said = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2
    assert "Missing option '--data'. Give a few hundred typical inputs: an .npz" in said
    assert "isobit plan MODEL" in said
