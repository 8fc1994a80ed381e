"""What AIMET's files have in common: documents by version, and grids by bit width, symmetry and offset.

A value is ``(q + offset) * scale`` with ``0 <= q < 2**bits``: the zero point of an unsigned grid is ``-offset``.
Facts from files that aimet-onnx 2.42 wrote.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding, Encodings
from isobit.encodings.quant_spec import Granularity, QuantSpec
from isobit.errors import EncodingError, IsobitError
from isobit.files import write_atomically
from isobit.formats.format import EncodingsFormat, FileContent
from isobit.formats.json_file import Fields, parse, read_text
from isobit.formats.names import Names, Place, without_single_inputs
from isobit.graph.ops import VALUE_PRESERVING
from isobit.graph.sites import Input, Site, Tensor, Weight
from isobit.version import __version__

AXIS_GUESSED = "the file has no axes: without the model the channels of {} are taken to be along axis 0"
#: Operations behind which AIMET has no quantizer.
_MOVES = VALUE_PRESERVING - {"Concat", "Resize", "GlobalMaxPool"}

NAMES_KEPT = "without the model names and axes are written as they are, not as its ONNX file has them"


def claims(content: FileContent, *, version: str) -> bool:
    """Whether a JSON document is AIMET's, of a version that begins with `version`."""
    data = content.json
    if not isinstance(data, dict) or not isinstance(data.get("version"), str):
        return False
    parts = {"activation_encodings", "param_encodings"} if not version.startswith("2") else {"encodings"}
    return data["version"].startswith(version) and bool(parts & data.keys())


def document(path: str | PathLike[str], version: str) -> Fields:
    """The document of a file. Raises EncodingError when it is none, or of another version."""
    where = fspath(path)
    fields = Fields(parse(read_text(path), where), where)
    file_version = fields.text("version")
    if file_version != version:
        raise fields.error("version", f"{file_version!r} is unknown here; this reader takes {version}")
    return fields


def integer_spec(bits: int, symmetric: bool, offsets: NDArray[np.int32], granularity: Granularity) -> QuantSpec:
    """The format that follows from offsets: signed symmetric at half of the grid, unsigned symmetric at its end."""
    half = 1 << (bits - 1)
    if bits == 32 and not (symmetric and np.all(offsets == -half)):
        raise EncodingError("a grid of 32 bits is that of a bias: symmetric and signed")
    if symmetric and np.all(offsets == -half):
        return QuantSpec("int", bits, granularity=granularity)
    return QuantSpec("uint", bits, symmetric and bool(np.all(offsets == 0)), granularity=granularity)


def integer_encoding(
    spec: QuantSpec,
    scale: NDArray[np.float32],
    offsets: NDArray[np.int32],
    axis: int | None,
) -> Encoding:
    """The encoding of scales and offsets of one shape, or one offset for all. Raises EncodingError."""
    zero_point = -offsets.astype(np.int64) + spec.q_min
    return Encoding(spec, scale, np.clip(zero_point, -(2**31), 2**31 - 1).astype(np.int32), axis)


def offsets_of(encoding: Encoding) -> NDArray[np.int64]:
    """The offsets of an integer encoding."""
    return np.asarray(-(encoding.zero_point.astype(np.int64) - unsigned_start(encoding.spec)))


def unsigned_start(spec: QuantSpec) -> int:
    """The integer that AIMET counts from: the lowest of the whole type, strict or not."""
    return 0 if spec.dtype == "uint" else -(1 << (spec.bits - 1))


class EncodingsInFile:
    """The encodings of a file as they are read: by the sites of the model, or by the file's names without one."""

    def __init__(self, names: Names | None) -> None:
        self.names = names
        self.encodings: dict[Site, Encoding] = {}
        self.unmapped: dict[str, None] = {}
        self.notes: dict[str, None] = dict.fromkeys(names.notes) if names is not None else {}
        self.seen: set[str] = set()

    def add(self, fields: Fields, name: str, kind: str | None, read: Callable[[Place | None], Encoding]) -> None:
        """One entry: `kind` is ``tensor`` or ``weight`` where the file says which. Raises EncodingError."""
        if name in self.seen:
            raise EncodingError(f"{fields.at}: a second entry for the same name")
        self.seen.add(name)
        places = () if self.names is None else self.names.find(name)
        matching = [place for place in places if kind is None or place.is_constant == (kind == "weight")]
        if places and not matching:
            kind_in_model = "a constant" if kind == "tensor" else "an activation"
            raise EncodingError(
                f"{fields.at}: the model has {kind_in_model} of that name, the file another kind of tensor"
            )
        if self.names is not None and not matching:
            self.unmapped[name] = None
            return
        try:
            if self.names is None:
                encoding = read(None)
                constant = kind == "weight" if kind else encoding.axis is not None or encoding.spec.bits == 32
                self.encodings[Weight(name) if constant else Tensor(name)] = encoding
            for place in matching:
                encoding = read(place)
                if place.is_constant:
                    encoding.broadcast(place.canonical)
                if place.inner and self.encodings.setdefault(place.site, encoding) != encoding:
                    self.note(f"{name!r} lies inside the node of {str(place.site)!r}, whose encoding is taken")
                if not place.inner:
                    self.encodings[place.site] = encoding
        except IsobitError as error:
            raise error if str(error).startswith(fields.at) else EncodingError(f"{fields.at}: {error}") from error

    def note(self, text: str) -> None:
        """Note something for the user."""
        self.notes[text] = None

    def result(self) -> Encodings:
        """What was read."""
        return Encodings(self.encodings, notes=self.notes, unmapped=self.unmapped)


def entry_name(entry: Any, at: str) -> tuple[Fields, str]:
    """The fields of an entry that holds its own name."""
    fields = Fields(entry, at)
    name = fields.text("name")
    fields.at += f" ({name})"
    return fields, name


def writable(
    encodings: Encodings, names: Names | None, version: EncodingsFormat, floats: Iterable[str]
) -> tuple[list[tuple[Place, Encoding]], list[str]]:
    """What a file of this version gets: (place, encoding) in order, strict grids widened, and notes.

    Moved tensors and int32 biases are left out where the version omits them; 16-bit floats are left to the caller.
    Raises EncodingError for single readers that disagree and for float types that are not in `floats`.
    """
    # Left out before readers are joined: one bias may have another scale at each layer that shares it.
    biases = [s for s, e in encodings.items() if e.spec.type_name == "int32" and "int32" in version.omitted_types]
    kept = {site: encoding for site, encoding in encodings.items() if site not in biases} if biases else encodings
    joined, notes = without_single_inputs(Encodings(kept), names, version.name)
    if biases:
        notes.append(f"{version.name} leaves out the {len(biases)} int32 biases, whose scales follow from the others")
    if names is None:
        notes.append(NAMES_KEPT)
    placed: dict[str, tuple[Place, Encoding]] = {}
    strict = []
    for site, encoding in joined.items():
        assert not isinstance(site, Input)  # they were joined
        if not encoding.spec.is_integer and encoding.spec.type_name not in floats:
            raise EncodingError(f"{str(site)!r}: {version.name} has no {encoding.spec.type_name}")
        if encoding.spec.strict:
            strict.append(str(site))
            encoding = replace(encoding, spec=replace(encoding.spec, strict=False))
        inner = names.inner(site) if names is not None else []
        placed.update({inner_place.name: (inner_place, encoding) for inner_place in inner})
        if version.omits_moved_tensors and (inner or _is_moved(site, encoding, joined, names)):
            continue
        place = names.of_site(site) if names is not None else Place(str(site), site)
        if placed.setdefault(place.name, (place, encoding))[1] != encoding:
            raise EncodingError(
                f"{place.name!r} is one constant in the file and several in the model, with different encodings"
            )
    if strict:
        shown = ", ".join(strict[:3]) + (f" and {len(strict) - 3} more" if strict[3:] else "")
        notes.append(f"{version.name} has no strict grids, so these got the lowest level too: {shown}")
    return list(placed.values()), notes


def _is_moved(site: Site, encoding: Encoding, encodings: Mapping[Site, Encoding], names: Names | None) -> bool:
    """Whether a tensor holds the values of another one and has its encoding."""
    node = names.graph.producer(site.name) if names is not None and isinstance(site, Tensor) else None
    return node is not None and node.op in _MOVES and encodings.get(Tensor(node.input(0) or "")) == encoding


def producer() -> dict[str, str]:
    """Who wrote the file, in AIMET's words."""
    return {"package": "isobit", "version": __version__}


def write_text(path: str | PathLike[str], document: Mapping[str, Any]) -> None:
    """Write a document, whole or not at all; one entry a line."""
    with write_atomically(Path(path)) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def plain(values: NDArray[Any]) -> Any:
    """Numbers as JSON writes them: a float32 as the double of the same value."""
    return (values.astype(np.float64) if values.dtype == np.float32 else values).tolist()
