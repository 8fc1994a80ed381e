"""Values of layers as files: what they hold, what damaged ones say, and how far two are apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isobit.errors import DataError
from isobit.layer_dumps import DumpedTensor, LayerDump, compare_dumps

VALUES: np.ndarray = np.arange(12, dtype=np.float32).reshape(2, 3, 2)


def dumped(values: np.ndarray = VALUES, name: str = "conv", **facts: Any) -> LayerDump:
    return LayerDump({name: DumpedTensor(values, facts.pop("onnx", name), **facts)}, True)


@pytest.mark.parametrize("name", ["conv", "file", "arr_0", "a/b:0", "x.npy", "ü", "isobit", "../x"])
def test_what_is_saved_is_loaded(tmp_path: Path, name: str) -> None:
    dump = dumped(name=name, channel_axis=1, scale=np.array([0.5, 1, 2], np.float32), layout="Permute(axes=(0, 2, 1))")
    dump.save(tmp_path / "d.npz")
    loaded = LayerDump.load(tmp_path / "d.npz")
    (tensor,) = loaded.tensors.values()
    assert list(loaded.tensors) == [name]
    np.testing.assert_array_equal(tensor.values, VALUES)
    np.testing.assert_array_equal(tensor.scale, [0.5, 1, 2])
    assert (tensor.onnx, tensor.channel_axis, tensor.layout) == (name, 1, "Permute(axes=(0, 2, 1))")
    with np.load(tmp_path / "d.npz") as archive:  # any NumPy reads it
        assert archive["isobit.json"].dtype == np.uint8


def edited(path: Path, change: Any) -> Path:
    """A dump whose record was changed."""
    dumped().save(path)
    with np.load(path) as archive:
        record = json.loads(archive["isobit.json"].tobytes())
    change(record)
    np.savez(path, conv=VALUES, **{"isobit.json": np.frombuffer(json.dumps(record).encode(), np.uint8)})
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record.update(version=9), "version 1"),
        (lambda record: record.update(format="other"), "version 1"),
        (lambda record: record["tensors"].update(other=record["tensors"]["conv"]), "'other' is missing"),
        (lambda record: record["tensors"]["conv"].update(channel_axis=3), "channel_axis 3 is no axis"),
        (lambda record: record["tensors"]["conv"].update(scale=["a"]), "not a layer dump"),
        (lambda record: record.pop("tensors"), "not a layer dump"),
    ],
)
def test_damaged_files_are_refused_with_their_name(tmp_path: Path, change: Any, says: str) -> None:
    path = edited(tmp_path / "d.npz", change)
    with pytest.raises(DataError, match=rf"d\.npz.*{says}"):
        LayerDump.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=VALUES)
    (tmp_path / "text.npz").write_text("no archive")
    for name, says in (("arrays.npz", "isobit dump"), ("text.npz", "not a layer dump"), ("none.npz", "No such file")):
        with pytest.raises(DataError, match=says):
            LayerDump.load(tmp_path / name)


@pytest.mark.parametrize("scale", [None, np.array([0.5], np.float32), np.array([0.5, 1, 2], np.float32)])
def test_differences_are_counted_in_steps(scale: np.ndarray | None) -> None:
    """By loops over every element."""
    other = VALUES.copy()
    other[0, 1, 0] += 1.5
    other[1, 2, 1] -= 2
    (found,) = compare_dumps(dumped(), dumped(other, channel_axis=1, scale=scale))
    assert found.equal == 10 / 12
    assert found.largest == 2
    noise = 1.5**2 + 2**2
    assert found.decibels == pytest.approx(10 * math.log10(sum(v * v for v in range(12)) / noise))
    if scale is None:
        assert found.steps is None
    else:
        assert found.steps == max(1.5 / scale[min(1, len(scale) - 1)], 2 / scale[-1])


def test_what_cannot_be_compared_is_said() -> None:
    first = LayerDump({name: DumpedTensor(VALUES, name) for name in ("a", "b", "c")}, False)
    tensors = {"x": DumpedTensor(VALUES, "a"), "b": DumpedTensor(VALUES[:1], "b"), "d": DumpedTensor(VALUES, "")}
    found = compare_dumps(first, LayerDump(tensors, True))
    assert [(each.name, each.equal, each.problem) for each in found] == [
        ("a", 1.0, ""), ("b", 0.0, "shapes (2, 3, 2) and (1, 3, 2)"), ("c", 0.0, "only in A"), ("d", 0.0, "only in B"),
    ]  # fmt: skip
    other = VALUES.copy()
    other[0, 0, 0] = np.nan
    (broken,) = compare_dumps(dumped(), dumped(other))
    assert broken.largest == math.inf
    (equal,) = compare_dumps(dumped(other), dumped(other))
    assert (equal.equal, equal.decibels) == (1, math.inf)
