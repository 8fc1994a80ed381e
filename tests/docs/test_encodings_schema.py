"""The published JSON Schema of encodings files: it takes what isobit writes, and refuses what isobit refuses."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from isobit.encodings import Encoding, Encodings, QuantSpec, encode_weight
from isobit.errors import EncodingError
from isobit.formats.isobit_json import dumps, loads
from isobit.graph import Input, Tensor, Weight

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "encodings.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

ENTRY = {"kind": "tensor", "name": "x", "format": "uint8 asymmetric per-tensor", "scale": 0.5, "zero_point": 3}


def file_of(entry):
    return {"format": "isobit encodings", "version": 1, "encodings": [entry]}


def test_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "text",
    ["int8 per-tensor", "int4 strict per-channel", "uint4 asymmetric block=4", "int4 lpbq=4", "float8e4m3", "bfloat16"],
)
def test_takes_every_granularity(text):
    weight = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)
    encoding = encode_weight(weight, QuantSpec.parse(text), block_axis=1)
    VALIDATOR.validate(json.loads(dumps(Encodings({Weight("w"): encoding}))))


def test_takes_every_kind_of_site():
    encoding = Encoding(QuantSpec.parse("uint8"), np.float32(0.5), np.int32(3))
    VALIDATOR.validate(json.loads(dumps(Encodings(dict.fromkeys([Tensor("t"), Weight("w"), Input("n", 1)], encoding)))))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "bias"},
        {"name": ""},
        {"format": "uint8 asymmetric"},
        {"format": "int1 symmetric per-tensor"},
        {"scale": -0.5},
        {"scale": 0},
        {"scale": [0.5, 0.25]},
        {"zero_point": 0.5},
        {"format": "uint8 asymmetric per-channel", "scale": [0.5], "zero_point": [0]},
        {"colour": "red"},
    ],
    ids=str,
)
def test_refuses_what_isobit_refuses(change):
    wrong = file_of({**ENTRY, **change})
    assert not VALIDATOR.is_valid(wrong)
    with pytest.raises(EncodingError):
        loads(json.dumps(wrong), "file.json")


def test_takes_the_plain_entry():
    VALIDATOR.validate(file_of(ENTRY))
    assert loads(json.dumps(file_of(ENTRY)), "file.json")["x"].zero_point == 3
