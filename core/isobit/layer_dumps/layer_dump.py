"""The values of a model's tensors on one batch: in memory, and as an .npz file that any NumPy reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

import numpy as np
from numpy.lib.format import write_array
from numpy.typing import NDArray

from isobit.errors import DataError
from isobit.files import check_unpacked_size, write_atomically
from isobit.html_report import Cell, Column, Curve, Section, cards, curve, table

_FORMAT, _VERSION, _RECORD = "isobit layer dump", 1, "isobit.json"


@dataclass(frozen=True, eq=False)
class DumpedTensor:
    """One tensor: its values in the layout of the neutral graph, and what it is called in an exported ONNX file.

    `layout` says how the ONNX tensor is laid out where that differs, as the steps that make it this one.
    `channel_axis` is the axis of its channels, None where there are none. `scale` holds the steps of its grid, one or
    one a channel, and is None where the values are on no grid: in float, or before they are rounded for a reader.
    """

    values: NDArray[Any]
    onnx: str
    channel_axis: int | None = None
    scale: NDArray[np.float32] | None = None
    layout: str = ""


@dataclass(frozen=True, eq=False)
class LayerDump:
    """Tensors by name, in the order in which they are computed; `simulated` is whether quantizers were on.

    `left_out` names tensors that were asked for and are not there, with the reason.
    """

    tensors: Mapping[str, DumpedTensor]
    simulated: bool
    left_out: Mapping[str, str] = field(default_factory=dict)

    def sections(self) -> list[Section]:
        """The tensors as parts of a page: what each holds in figures, and the largest values in order."""
        rows = [_row(name, tensor) for name, tensor in self.tensors.items()]
        titles = ("least", "largest", "mean", "deviation", "zeros", "not finite", "step")
        columns = [Column("tensor", "name"), Column("in ONNX", "name"), Column("shape"), Column("type")]
        columns += [Column(title, "number") for title in titles]
        points = [(float(index), _reach(t.values), name) for index, (name, t) in enumerate(self.tensors.items())]
        left = [Column("name", "name"), Column("why", "words")]
        return [
            cards({"tensors": str(len(rows)), "quantizers": "on" if self.simulated else "off"}),
            curve(
                "Largest magnitude",
                "The largest magnitude of each tensor, in the order of execution.",
                "tensor",
                "magnitude",
                [Curve("largest magnitude", points, joined=True)],
            ),
            table("Tensors", columns, rows, filter="Filter by name"),
            table("Left out, and why", left, list(self.left_out.items()), none="Nothing was left out."),
        ]

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file with an array for each tensor, by its name, whole or not at all.

        What else is known of the tensors is JSON in ``isobit.json``, an array of bytes. Raises OutputError.
        """
        record = {
            "format": _FORMAT,
            "version": _VERSION,
            "simulated": self.simulated,
            "left_out": dict(self.left_out),
            "tensors": {
                name: {
                    "onnx": tensor.onnx,
                    "layout": tensor.layout,
                    "channel_axis": tensor.channel_axis,
                    "scale": None if tensor.scale is None else [float(step) for step in tensor.scale.reshape(-1)],
                }
                for name, tensor in self.tensors.items()
            },
        }
        text = np.frombuffer(json.dumps(record).encode(), np.uint8)
        arrays = {_RECORD: text, **{name: tensor.values for name, tensor in self.tensors.items()}}
        # As numpy.savez_compressed writes, which cannot take a tensor that is called "file".
        with write_atomically(Path(path)) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    write_array(member, np.asanyarray(array), allow_pickle=False)

    @classmethod
    def load(cls, path: str | Path) -> LayerDump:
        """Read what `save` wrote. Raises DataError that names the file."""
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                check_unpacked_size(file.zip)
                if _RECORD not in file.files:
                    raise DataError(f"{path}: not a layer dump: it has no {_RECORD!r}; `isobit dump` writes one")
                return _read(json.loads(file[_RECORD].tobytes()), {name: file[name] for name in file.files}, str(path))
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
        except Exception as error:  # a damaged archive fails in many ways: zipfile, zlib, json, NumPy
            raise DataError(f"{path}: not a layer dump: {error}") from error


def is_dump(path: Path) -> bool:
    """Whether a file is an archive that holds the record of a layer dump."""
    try:
        with ZipFile(path) as archive:
            return f"{_RECORD}.npy" in archive.namelist()
    except (OSError, ValueError, BadZipFile):
        return False


def _read(record: Any, arrays: Mapping[str, NDArray[Any]], path: str) -> LayerDump:
    if record["format"] != _FORMAT or record["version"] != _VERSION:
        raise DataError(f"{path}: not a layer dump of version {_VERSION}")
    tensors = {}
    for name, known in record["tensors"].items():
        if name not in arrays:
            raise DataError(f"{path}: the array of {name!r} is missing")
        axis, scale = known["channel_axis"], known["scale"]
        if axis is not None and not (isinstance(axis, int) and 0 <= axis < max(1, arrays[name].ndim)):
            raise DataError(f"{path}: {name!r}: channel_axis {axis!r} is no axis of {arrays[name].shape}")
        steps = None if scale is None else np.array(scale, np.float32)
        tensors[str(name)] = DumpedTensor(arrays[name], str(known["onnx"]), axis, steps, str(known["layout"]))
    return LayerDump(tensors, bool(record["simulated"]), {str(k): str(v) for k, v in record["left_out"].items()})


def _row(name: str, tensor: DumpedTensor) -> list[Cell]:
    values = tensor.values
    finite = values[np.isfinite(values)].astype(np.float64) if values.dtype.kind in "fiub" else np.zeros(0)
    figures = [finite.min(), finite.max(), finite.mean(), finite.std()] if finite.size else [None] * 4
    shares = [float((values == 0).mean()), 1 - finite.size / values.size] if values.size else [0.0, 0.0]
    step = None if tensor.scale is None else float(tensor.scale.max())
    shape = "(" + ", ".join(map(str, values.shape)) + ")"
    return [
        name,
        tensor.onnx,
        shape,
        str(values.dtype),
        *(("" if value is None else f"{value:.4g}", value) for value in figures),
        *((f"{100 * share:.3g} %", share) for share in shares),
        ("" if step is None else f"{step:.4g}", step),
    ]


def _reach(values: NDArray[Any]) -> float:
    finite = values[np.isfinite(values)] if values.dtype.kind in "fiub" else np.zeros(0)
    return float(np.abs(finite.astype(np.float64)).max(initial=0.0))
