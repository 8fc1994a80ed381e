from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

from isobit.statistics import Statistics


@pytest.fixture
def parts(tmp_path, images):
    np.savez(tmp_path / "part1.npz", image=images[:24])
    np.savez(tmp_path / "part2.npz", image=images[24:])
    np.savez(tmp_path / "all.npz", image=images)
    return tmp_path


def test_statistics_are_written_added_up_and_calibrated_from(isobit, digits, parts):
    for number in (1, 2):
        result = isobit(
            *("calibrate", digits / "model.onnx", "--data", parts / f"part{number}.npz"),
            *("--write-statistics", parts / f"{number}.npz", "--batch-size", 8),
        )
        assert result.exit_code == 0, result.output
    merged = isobit(
        *("calibrate", digits / "model.onnx", "--statistics", parts / "1.npz", parts / "2.npz"),
        *("--method", "entropy", "-o", parts / "merged", "--write-statistics", parts / "both.npz"),
    )
    assert merged.exit_code == 0, merged.output
    assert "over 5 batches, calibration Entropy()" in merged.stdout
    direct = isobit(
        *("calibrate", digits / "model.onnx", "--data", parts / "all.npz", "--batch-size", 8),
        *("--method", "entropy", "-o", parts / "direct"),
    )
    assert direct.exit_code == 0, direct.output
    encodings = [json.loads((parts / out / "encodings.json").read_text()) for out in ("merged", "direct")]
    assert encodings[0] == encodings[1]
    assert sorted(path.name for path in (parts / "merged").iterdir()) == [
        "encodings.json",
        "model.qdq.onnx",
        "summary.txt",
    ]
    assert Statistics.load(parts / "both.npz").batches == 5


def test_what_was_kept_of_an_interrupted_run_is_gone_on_with(isobit, digits, parts, monkeypatch):
    from isobit.data import Dataset

    whole = Dataset.__iter__

    def interrupted(self):
        for index, batch in enumerate(whole(self)):
            if index == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    arguments = ("calibrate", digits / "model.onnx", "--data", parts / "all.npz", "--batch-size", 8)
    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "__iter__", interrupted)
        stopped = isobit(*arguments, "--resume", parts / "so-far.npz")
    assert stopped.exit_code == 130
    assert "interrupted; the statistics of 3 batches are in" in stopped.stderr
    gone_on = isobit(*arguments, "--resume", parts / "so-far.npz", "--write-statistics", parts / "end.npz")
    assert gone_on.exit_code == 0, gone_on.output
    plain = isobit(*arguments, "--write-statistics", parts / "plain.npz")
    assert plain.exit_code == 0, plain.output
    assert Statistics.load(parts / "end.npz").to_bytes() == Statistics.load(parts / "plain.npz").to_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "out"), "give either --data or --statistics"),
        (("--data", "d.npz", "--statistics", "s.npz", "-o", "out"), "give either --data or --statistics"),
        (("--data", "d.npz"), "say what to write"),
        (("b.npz", "-o", "out"), "unexpected b.npz"),
        (("--statistics", "s.npz", "--resume", "r.npz"), "they are about --data"),
    ],
)
def test_wrong_usage(isobit, digits, arguments, said):
    result = isobit("calibrate", digits / "model.onnx", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_errors_name_the_file(isobit, digits, tmp_path):
    Statistics().save(tmp_path / "other.npz")
    result = isobit("calibrate", digits / "model.onnx", "--statistics", tmp_path / "other.npz", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "other.npz: has no statistics of 'image'" in result.stderr
    assert not (tmp_path / "out").exists()
