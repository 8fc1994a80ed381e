"""isobit's encodings file: nothing is lost on the way, and a malformed file is refused by file, entry and field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.encodings import Encoding, Encodings, QuantSpec, encode_weight
from isobit.errors import EncodingError
from isobit.formats.isobit_json import IsobitJson, dumps, loads
from isobit.graph import Input, Site, Tensor, Weight

names = st.text(min_size=1, max_size=8)
sites = st.one_of(names.map(Tensor), names.map(Weight), st.builds(Input, names, st.integers(0, 9)))
scales = st.floats(min_value=float(np.finfo(np.float32).tiny), width=32, allow_infinity=False)


@st.composite
def encodings(draw: st.DrawFn) -> Encoding:
    """An encoding of any type and granularity."""
    granularity = draw(st.sampled_from(["per-tensor", "per-channel", "block=4", "lpbq=2"]))
    if granularity == "lpbq=2":
        values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((3, 4)).astype(np.float32)
        return encode_weight(values, QuantSpec.parse("int4 lpbq=2"), block_axis=1)
    spec = QuantSpec.parse(draw(st.sampled_from(["uint8", "int5", "int16 strict", "uint2 symmetric", "float8e5m2"])))
    shape, axis = {
        "per-tensor": ((), None),
        "per-channel": ((draw(st.integers(1, 4)),), draw(st.integers(0, 3))),
        "block=4": ((2, 3, 1), draw(st.integers(0, 2))),
    }[granularity]
    scale = np.array([draw(scales) for _ in range(int(np.prod(shape)))], np.float32).reshape(shape)
    low, high = (spec.q_min, spec.q_max) if spec.is_integer and not spec.symmetric else (0, 0)
    zero = np.array([draw(st.integers(low, high)) for _ in range(scale.size)], np.int32).reshape(shape)
    return Encoding(QuantSpec.parse(f"{spec} {granularity}"), scale, zero, axis)


@given(st.dictionaries(sites, encodings(), max_size=5))
def test_what_is_written_reads_back_bit_for_bit(items: dict[Site, Encoding]) -> None:
    written = dumps(Encodings(items))
    read = loads(written, "x.json")
    assert list(read) == list(items)
    assert all(read[site] == encoding for site, encoding in items.items())
    assert dumps(read) == written


def test_a_file_comes_back(tmp_path: Path) -> None:
    encodings = Encodings({Tensor("käse"): Encoding(QuantSpec.parse("uint8"), np.float32(0.1), np.int32(7))})
    IsobitJson().write(encodings, tmp_path / "e.json")
    assert dict(IsobitJson().read(tmp_path / "e.json")) == dict(encodings)
    assert [path.name for path in tmp_path.iterdir()] == ["e.json"]


def test_the_file_is_plain_json() -> None:
    encodings = Encodings(
        {Input("conv", 1): Encoding(QuantSpec.parse("int8 per-channel"), np.float32([0.5]), np.int32([0]), 2)}
    )
    assert json.loads(dumps(encodings)) == {
        "format": "isobit encodings",
        "version": 1,
        "encodings": [
            {
                "kind": "input",
                "name": "conv",
                "index": 1,
                "format": "int8 symmetric per-channel",
                "scale": [0.5],
                "zero_point": [0],
                "axis": 2,
            }
        ],
    }


# --- malformed files ------------------------------------------------------------------------------------------------

ENTRY = {"kind": "tensor", "name": "relu", "format": "uint8 asymmetric per-tensor", "scale": 0.5, "zero_point": 3}
CHANNELS = {
    "kind": "weight",
    "name": "w",
    "format": "int8 symmetric per-channel",
    "scale": [0.5, 1.0],
    "zero_point": [0, 0],
    "axis": 0,
}
LPBQ = {
    **CHANNELS,
    "format": "int4 symmetric lpbq=2",
    "scale": [[0.5, 1.0]],
    "zero_point": [[0, 0]],
    "axis": 1,
    "multiplier": [[1, 2]],
    "channel_scale": [[0.5]],
}


def file_of(*entries: Any, **top: Any) -> str:
    return json.dumps({"format": "isobit encodings", "version": 1, "encodings": list(entries), **top})


def without(entry: dict[str, Any], key: str) -> str:
    return file_of({k: v for k, v in entry.items() if k != key})


def with_(entry: dict[str, Any], **changes: Any) -> str:
    return file_of({**entry, **changes})


RELU, W = "encodings[0] (relu): ", "encodings[0] (w): "

MALFORMED = {
    "no JSON": ("{", "not valid JSON"),
    "empty": ("", "not valid JSON"),
    "too deep": ("[" * 100_000, "not valid JSON"),
    "a long number": ("1" * 10_000, "not valid JSON"),
    "a list": ("[]", "not an isobit encodings file"),
    "another format": (file_of(format="aimet"), "not an isobit encodings file"),
    "no version": ('{"format": "isobit encodings"}', "version None is unknown"),
    "another version": (file_of(version=2), "version 2 is unknown; this isobit reads version 1"),
    "version a flag": (file_of(version=True), "version True is unknown"),
    "encodings missing": ('{"format": "isobit encodings", "version": 1}', "encodings: this field is missing"),
    "byte order mark": ("\ufeff" + file_of(ENTRY), "begins with a byte order mark"),
    "a field twice": (file_of(ENTRY)[:-3] + ', "scale": 1}]}', "scale: this name stands twice in one object"),
    "scales and a flag": (with_(CHANNELS, scale=[0.5, True]), W + "scale: must be numbers"),
    "encodings an object": (file_of(encodings={}), "encodings: must be a list"),
    "entry a number": (file_of(ENTRY, 3), "encodings[1]: must be an object"),
    "kind missing": (without(ENTRY, "kind"), RELU + "kind: this field is missing"),
    "kind unknown": (with_(ENTRY, kind="node"), RELU + "unknown kind of site 'node'"),
    "kind a number": (with_(ENTRY, kind=1), RELU + "kind: must be a text"),
    "name missing": (without(ENTRY, "name"), "encodings[0]: name: this field is missing"),
    "name a number": (with_(ENTRY, name=3), "encodings[0]: name: must be a text"),
    "name empty": (with_(ENTRY, name=""), "name: must be a text"),
    "index negative": (with_(ENTRY, kind="input", index=-1), RELU + "index: must be a whole number from 0, found -1"),
    "index a flag": (with_(ENTRY, kind="input", index=True), RELU + "index: must be a whole number"),
    "index a fraction": (with_(ENTRY, kind="input", index=0.5), RELU + "index: must be a whole number"),
    "format missing": (without(ENTRY, "format"), RELU + "format: this field is missing"),
    "format misspelt": (with_(ENTRY, format="unit8 per-tensor"), RELU + "unknown number type 'unit8'"),
    "format without granularity": (with_(ENTRY, format="uint8"), RELU + "format: must say the granularity"),
    "scale missing": (without(ENTRY, "scale"), RELU + "scale: this field is missing"),
    "scale a text": (with_(ENTRY, scale="0.5"), RELU + "scale: must be numbers, found 0.5"),
    "scale null": (with_(ENTRY, scale=None), RELU + "scale: must be numbers"),
    "scale an object": (with_(ENTRY, scale={"a": 1}), RELU + "scale: must be numbers"),
    "scale a flag": (with_(ENTRY, scale=True), RELU + "scale: must be numbers"),
    "scale zero": (with_(ENTRY, scale=0), RELU + "scales must be finite and at least"),
    "scale too small": (with_(ENTRY, scale=1e-60), RELU + "scales must be finite and at least"),
    "scale too large": (with_(ENTRY, scale=1e60), RELU + "scale: out of the range of float32"),
    "scale NaN": (with_(ENTRY, scale=float("nan")), RELU + "scales must be finite"),
    "scale infinite": (with_(ENTRY, scale=float("inf")), RELU + "scale: out of the range"),
    "scale a list": (with_(ENTRY, scale=[0.5]), RELU + "a per-tensor encoding has one scale"),
    "scales of nothing": (with_(CHANNELS, scale=[]), W + "scale: must be numbers, found []"),
    "scales ragged": (with_(CHANNELS, scale=[[1.0], [1.0, 2.0]]), W + "scale: rows of different lengths"),
    "scales too deep": (with_(CHANNELS, scale=json.loads("[" * 80 + "1" + "]" * 80)), W + "scale: "),
    "zero point missing": (without(ENTRY, "zero_point"), RELU + "zero_point: this field is missing"),
    "zero point a fraction": (with_(ENTRY, zero_point=0.5), RELU + "zero_point: must be whole numbers, found 0.5"),
    "zero point a flag": (with_(ENTRY, zero_point=False), RELU + "zero_point: must be whole numbers"),
    "zero point outside": (with_(ENTRY, zero_point=256), RELU + "zero points of uint8 lie in [0, 255]"),
    "zero point huge": (with_(ENTRY, zero_point=2**40), RELU + "zero_point: out of the range of int32"),
    "zero point gigantic": (with_(ENTRY, zero_point=10**400), RELU + "zero_point: "),
    "zero points too many": (with_(CHANNELS, zero_point=[0, 0, 0]), W + "zero points of shape (3,) do not fit"),
    "zero point of symmetric": (with_(CHANNELS, zero_point=[0, 1]), W + "the zero point of a symmetric int8 is 0"),
    "axis missing": (without(CHANNELS, "axis"), W + "a per-channel encoding has a list of scales and an axis"),
    "axis negative": (with_(CHANNELS, axis=-1), W + "axis: must be a whole number from 0, found -1"),
    "axis a text": (with_(CHANNELS, axis="0"), W + "axis: must be a whole number from 0"),
    "axis a flag": (with_(CHANNELS, axis=True), W + "axis: must be a whole number from 0"),
    "block axis too large": (with_(LPBQ, axis=2), W + "a per-block encoding needs the axis of its blocks"),
    "multiplier alone": (without(LPBQ, "channel_scale"), W + "multiplier and channel_scale are the two parts"),
    "multiplier a fraction": (with_(LPBQ, multiplier=[[1.5, 2]]), W + "multiplier: must be whole numbers"),
    "multiplier zero": (with_(LPBQ, multiplier=[[0, 2]]), W + "multipliers of int4 symmetric lpbq=2 lie in [1, 16]"),
    "multiplier of another shape": (with_(LPBQ, multiplier=[[1]]), W + "multiplier of shape (1, 1)"),
    "parts that differ": (
        with_(LPBQ, channel_scale=[[0.25]]),
        W + "the scale of an lpbq encoding is multiplier * channel",
    ),
    "parts of no lpbq": (
        with_(CHANNELS, multiplier=[1, 2], channel_scale=[0.5]),
        W + "multiplier and channel_scale are the two parts of an lpbq encoding, and of no other",
    ),
    "unknown field": (with_(ENTRY, zeropoint=3), RELU + "zeropoint: unknown field (did you mean 'zero_point'?)"),
    "the same site twice": (file_of(ENTRY, ENTRY), "encodings[1] (relu): a second entry for the same tensor"),
}


def test_the_entries_that_are_spoilt_below_are_good() -> None:
    assert len(loads(file_of(ENTRY, CHANNELS, {**LPBQ, "name": "v"}), "x.json")) == 3


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_by_file_entry_and_field(case: str, tmp_path: Path) -> None:
    text, message = MALFORMED[case]
    path = tmp_path / "e.json"
    path.write_text(text, "utf-8")
    with pytest.raises(EncodingError) as error:
        IsobitJson().read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match=r"cannot read encodings file .*none\.json"):
        IsobitJson().read(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(EncodingError, match=r"cannot read encodings file .*latin\.json"):
        IsobitJson().read(tmp_path / "latin.json")


# --- fuzzing --------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def read_or_refuse(text: str) -> None:
    try:
        loads(text, "x.json")
    except EncodingError as refused:
        message = str(refused)
    else:
        return
    assert re.match(r"x\.json: ", message)


@settings(max_examples=150)
@given(
    entry=st.sampled_from([ENTRY, CHANNELS, LPBQ]),
    key=st.sampled_from(sorted(LPBQ)) | st.text(max_size=4),
    value=json_values
    | st.sampled_from(["int4 block=0", "int8 strict per-tensor", "float16 per-tensor", [[[1]]], -(2**31)]),
)
def test_any_field_may_hold_anything(entry: dict[str, Any], key: str, value: Any) -> None:
    read_or_refuse(with_(entry, **{key: value}))


@given(json_values)
def test_any_json_is_read_or_refused(value: Any) -> None:
    read_or_refuse(json.dumps(value))
    read_or_refuse(file_of(value))
    read_or_refuse(file_of(encodings=value))


@given(st.data())
def test_any_damaged_text_is_read_or_refused(data: st.DataObject) -> None:
    text = file_of(ENTRY, CHANNELS, LPBQ)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 20, len(text))))
    read_or_refuse(text[:start] + data.draw(st.text(max_size=5)) + text[end:])
