"""Malformed files of AIMET's three formats: each is refused by file, entry and field; nothing else is ever raised."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from foreign_names import NAMES
from hypothesis import given
from hypothesis import strategies as st

from isobit.errors import EncodingError
from isobit.quantsim import read_encodings

V0: dict[str, Any] = {
    "version": "0.6.1",
    "activation_encodings": {
        "x": [
            {
                "bitwidth": 8,
                "dtype": "int",
                "is_symmetric": "False",
                "min": -1.5,
                "max": 126,
                "scale": 0.5,
                "offset": -3,
            }
        ]
    },
    "param_encodings": {
        "matmul.w": [
            {"bitwidth": 8, "dtype": "int", "is_symmetric": "True", "scale": 0.5, "offset": -128} for _ in range(6)
        ]
    },
}
V1: dict[str, Any] = {
    "version": "1.0.0",
    "activation_encodings": [
        {
            "name": "x",
            "enc_type": "PER_TENSOR",
            "dtype": "INT",
            "bw": 8,
            "is_sym": False,
            "scale": [0.5],
            "offset": [-3],
        }
    ],
    "param_encodings": [
        {
            "name": "matmul.w",
            "enc_type": "PER_CHANNEL",
            "dtype": "INT",
            "bw": 8,
            "is_sym": True,
            "scale": [0.5] * 6,
            "offset": [-128] * 6,
        },
        {
            "name": "up.w",
            "enc_type": "PER_BLOCK",
            "dtype": "INT",
            "bw": 4,
            "is_sym": True,
            "block_size": 2,
            "scale": [0.5] * 12,
            "offset": [-8] * 12,
        },
        {
            "name": "conv.w",
            "enc_type": "LPBQ",
            "dtype": "INT",
            "bw": 8,
            "compressed_bw": 4,
            "is_sym": True,
            "block_size": 2,
            "scale": [0.5] * 8,
            "offset": [-128] * 8,
            "per_block_int_scale": [3] * 16,
        },
    ],
}
V2: dict[str, Any] = {
    "version": "2.0.0",
    "encodings": [
        {"name": "x", "output_dtype": "uint8", "y_scale": 0.5, "y_zero_point": 3},
        {"name": "matmul.w", "output_dtype": "int8", "y_scale": [0.5] * 6, "axis": 1},
        {"name": "up.w", "output_dtype": "int4", "y_scale": [[[[0.5]]] * 6] * 2, "axis": 0, "block_size": 2},
        {
            "name": "conv.w",
            "output_dtype": "int4",
            "axis": 1,
            "block_size": 2,
            "per_block_int_scale": [[[[3]], [[2]]]] * 8,
            "per_channel_float_scale": [[[[0.5]]]] * 8,
        },
    ],
}

GOOD = {"0.6.1": V0, "1.0.0": V1, "2.0.0": V2}
_GONE = object()
HUGE, DEEP = 10**400, json.loads("[" * 70 + "1" + "]" * 70)


def spoilt(document: dict[str, Any], *keys: Any, value: Any = _GONE) -> str:
    """The document with one place replaced, or gone."""
    copied = copy.deepcopy(document)
    place = copied
    for key in keys[:-1]:
        place = place[key]
    if value is _GONE:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return json.dumps(copied)


def v0(key: str, value: Any = _GONE, *, part: str = "activation_encodings", name: str = "x", at: int = 0) -> str:
    return spoilt(V0, part, name, at, key, value=value)


def v1(number: int, key: str, value: Any = _GONE, *, part: str = "param_encodings") -> str:
    return spoilt(V1, part, number, key, value=value)


def v2(number: int, key: str, value: Any = _GONE) -> str:
    return spoilt(V2, "encodings", number, key, value=value)


X0, M0 = "activation_encodings (x)", "param_encodings (matmul.w)"
X1, M1 = "activation_encodings[0] (x)", "param_encodings[0] (matmul.w)"
U1, C1 = "param_encodings[1] (up.w)", "param_encodings[2] (conv.w)"
X2, M2, U2, C2 = (f"encodings[{i}] ({n})" for i, n in enumerate(("x", "matmul.w", "up.w", "conv.w")))
A = "activation_encodings"

MALFORMED: dict[str, tuple[str, str]] = {
    # --- any version
    "empty": ("", "not valid JSON"),
    "truncated": (json.dumps(V1)[:200], "not valid JSON"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "byte order mark": ("\ufeff" + json.dumps(V1), "begins with a byte order mark"),
    "a name twice": (json.dumps(V1)[:-1] + ', "version": "1.0.0"}', "version: this name stands twice"),
    "a list": ("[]", "no encodings file that is known"),
    "no version": (spoilt(V1, "version"), "no encodings file that is known"),
    "version a number": (spoilt(V1, "version", value=1.0), "no encodings file that is known"),
    "version of tomorrow": (spoilt(V1, "version", value="3.0.0"), "no encodings file that is known"),
    "version 0.5": (spoilt(V0, "version", value="0.5.0"), "version: '0.5.0' is unknown here; this reader takes 0.6.1"),
    "version 1.1": (spoilt(V1, "version", value="1.1.0"), "version: '1.1.0' is unknown here"),
    "version 2.1": (spoilt(V2, "version", value="2.1.0"), "version: '2.1.0' is unknown here"),
    # --- 0.6.1
    "0: no parameters": (spoilt(V0, "param_encodings"), "param_encodings: this field is missing"),
    "0: part a list": (spoilt(V0, A, value=[]), A + ": must be an object"),
    "0: entry a number": (spoilt(V0, A, "x", value=3), X0 + ": must be a list"),
    "0: entry empty": (spoilt(V0, A, "x", value=[]), X0 + ": must be a list of at least one"),
    "0: grid a text": (spoilt(V0, A, "x", 0, value="a"), X0 + "[0]: must be an object"),
    "0: no scale": (v0("scale"), X0 + "[0]: scale: this field is missing"),
    "0: scale a text": (v0("scale", "0.5"), X0 + "[0]: scale: must be numbers"),
    "0: scale a list": (v0("scale", [0.5]), X0 + "[0]: scale: must be one number"),
    "0: scale negative": (v0("scale", -0.5), X0),
    "0: scale NaN": (v0("scale", float("nan")), X0),
    "0: scale huge": (v0("scale", 1e60), X0 + "[0]: scale: out of the range of float32"),
    "0: offset a fraction": (v0("offset", -3.5), X0 + "[0]: offset: must be whole numbers"),
    "0: offset positive": (spoilt(V0, A, "x", value=[{**V0[A]["x"][0], "offset": 3, "min": 1.5, "max": 129}]), X0),
    "0: bitwidth 1": (v0("bitwidth", 1), X0 + "[0]: bitwidth: must be a whole number from 2 to 32"),
    "0: bitwidth 24": (v0("bitwidth", 24), X0),
    "0: bitwidth a flag": (v0("bitwidth", True), X0 + "[0]: bitwidth: must be a whole number"),
    "0: symmetry a word": (v0("is_symmetric", "no"), X0 + "[0]: is_symmetric: must be true or false"),
    "0: dtype unknown": (v0("dtype", "INT"), X0 + "[0]: dtype: unknown value INT; known are int, float"),
    "0: float of 8 bits": (v0("dtype", "float"), X0 + "[0]: bitwidth: floats have 16 bits"),
    "0: field unknown": (v0("scales", 1), X0 + "[0]: scales: unknown field (did you mean 'scale'?)"),
    "0: min of another grid": (v0("min", -9), X0 + "[0]: min: -9 does not fit scale and offset"),
    "0: max not finite": (v0("max", float("inf")), X0 + "[0]: max: "),
    "0: channels differ": (
        v0("bitwidth", 4, part="param_encodings", name="matmul.w", at=2),
        M0 + "[2]: bitwidth: the channels of one tensor have one format",
    ),
    "0: channels missing": (spoilt(V0, "param_encodings", "matmul.w", 5), M0 + ": 5 entries do not fit the 6 channels"),
    "0: channels of an activation": (
        spoilt(V0, A, "x", value=V0[A]["x"] * 2), X0 + ": an activation has one entry, found 2",
    ),
    "0: an activation that is a weight": (
        spoilt(V0, A, value={"conv.w": V0[A]["x"]}), A + " (conv.w): the model has a constant of that name",
    ),
    "0: by module": (spoilt(V0, A, "x", value={"inputs": {}}), X0 + ": inputs: unknown field (did you mean 'input'?)"),
    "0: by module, no number": (
        spoilt(V0, A, "x", value={"input": {"a": {}}}),
        X0 + ": input: a: must be a whole number",
    ),
    # --- 1.0.0
    "1: part an object": (spoilt(V1, A, value={}), A + ": must be a list"),
    "1: entry null": (spoilt(V1, A, 0, value=None), A + "[0]: must be an object"),
    "1: no name": (v1(0, "name", part=A), A + "[0]: name: this field is missing"),
    "1: name empty": (v1(0, "name", "", part=A), A + "[0]: name: must be a text"),
    "1: name twice": (spoilt(V1, A, value=V1[A] * 2), "activation_encodings[1] (x): a second entry for the same name"),
    "1: kind unknown": (v1(0, "enc_type", "PER_CHANEL"), M1 + ": enc_type: unknown value PER_CHANEL (did you mean"),
    "1: vectors": (v1(0, "enc_type", "VECTOR"), M1 + ": enc_type: vector quantization is not supported"),
    "1: dtype small": (v1(0, "dtype", "int"), M1 + ": dtype: unknown value int"),
    "1: bw a text": (v1(0, "bw", "8"), M1 + ": bw: must be a whole number"),
    "1: bw huge": (v1(0, "bw", HUGE), M1 + ": bw: must be a whole number"),
    "1: symmetry missing": (v1(0, "is_sym"), M1 + ": is_sym: this field is missing"),
    "1: scale missing": (v1(0, "scale"), M1 + ": scale: this field is missing"),
    "1: scales negative": (v1(0, "scale", [-0.5] * 6), M1 + ": scales must be finite and at least"),
    "1: scales NaN": (v1(0, "scale", [float("nan")] * 6), M1 + ": scales must be finite"),
    "1: scales ragged": (v1(0, "scale", [[1.0], [1.0, 2]]), M1 + ": scale: rows of different lengths"),
    "1: scales nested": (v1(0, "scale", [[0.5] * 6]), M1 + ": scale: must be a list of numbers"),
    "1: scales deep": (v1(0, "scale", DEEP), M1 + ": scale: "),
    "1: scales too few": (v1(0, "scale", [0.5] * 5), M1 + ": offset: 6 offsets do not fit 5 scales"),
    "1: channels too few": (
        spoilt(V1, "param_encodings", 0, value={**V1["param_encodings"][0], "scale": [0.5] * 5, "offset": [-128] * 5}),
        M1 + ": scale: 5 scales do not fit the 6 channels of 'matmul.w'",
    ),
    "1: scales of a tensor": (v1(0, "scale", [0.5, 0.5], part=A), X1 + ": scale: a per-tensor entry has one scale"),
    "1: offset infinite": (v1(0, "offset", [float("inf")] * 6), M1 + ": offset: "),
    "1: offset of 40 bits": (v1(0, "offset", [-(2**40)], part=A), X1 + ": offset: out of the range of int32"),
    "1: offset outside": (v1(0, "offset", [-300], part=A), X1 + ": zero points of uint8 lie in [0, 255]"),
    "1: 32 bits, asymmetric": (v1(0, "bw", 32, part=A), X1 + ": a grid of 32 bits is that of a bias"),
    "1: half a step": (v1(0, "zero_point_shift", 0.5), M1 + ": zero_point_shift: grids that are shifted"),
    "1: channels of an activation": (
        v1(0, "enc_type", "PER_CHANNEL", part=A),
        X1 + ": enc_type: an activation has one",
    ),
    "1: field unknown": (v1(0, "block_size", 2), M1 + ": block_size: unknown field"),
    "1: block size missing": (v1(1, "block_size"), U1 + ": block_size: this field is missing"),
    "1: block size 0": (v1(1, "block_size", 0), U1 + ": block_size: must be a whole number from 1"),
    "1: block size 3": (v1(1, "block_size", 3), U1 + ": block_size: block size 3 does not divide 4"),
    "1: blocks too few": (v1(1, "scale", [0.5] * 12 + [1.0]), U1 + ": offset: 12 offsets do not fit 13 scales"),
    "1: lpbq asymmetric": (v1(2, "is_sym", False), C1 + ": offset: lpbq is symmetric"),
    "1: lpbq offset": (v1(2, "offset", [-8] * 8), C1 + ": offset: lpbq is symmetric"),
    "1: lpbq multiplier 0": (v1(2, "per_block_int_scale", [0] * 16), C1 + ": per_block_int_scale: must lie in [1, 16]"),
    "1: lpbq multiplier 17": (v1(2, "per_block_int_scale", [17] * 16), C1 + ": per_block_int_scale: must lie in"),
    "1: lpbq too few": (
        v1(2, "per_block_int_scale", [3] * 15),
        C1 + ": per_block_int_scale: 15 block scales do not fit",
    ),
    "1: lpbq channels": (v1(2, "scale", [0.5] * 7), C1 + ": offset: 8 offsets do not fit 7 scales"),
    "1: lpbq bits": (v1(2, "compressed_bw", 9), C1 + ": bw: must be a whole number from 9"),
    # --- 2.0.0
    "2: no list": (spoilt(V2, "encodings", value={}), "encodings: must be a list"),
    "2: name a number": (v2(0, "name", 1), "encodings[0]: name: must be a text"),
    "2: name twice": (spoilt(V2, "encodings", value=V2["encodings"][:1] * 2), "encodings[1] (x): a second entry"),
    "2: type missing": (v2(0, "output_dtype"), X2 + ": output_dtype: this field is missing"),
    "2: type unknown": (v2(0, "output_dtype", "fp4"), X2 + ": output_dtype: unknown type 'fp4'"),
    "2: type of 99 bits": (v2(0, "output_dtype", "int99"), X2),
    "2: scale missing": (v2(0, "y_scale"), X2 + ": y_scale: this field is missing"),
    "2: scale zero": (v2(0, "y_scale", 0), X2 + ": scales must be finite and at least"),
    "2: scale a flag": (v2(0, "y_scale", True), X2 + ": y_scale: must be numbers"),
    "2: scales and a flag": (v2(1, "y_scale", [0.5, 0.5, 0.5, 0.5, 0.5, True]), M2 + ": y_scale: must be numbers"),
    "2: zero point outside": (v2(0, "y_zero_point", 256), X2 + ": zero points of uint8"),
    "2: zero point of a float": (v2(0, "output_dtype", "float8e5m2"), X2 + ": float8e5m2 has no zero point"),
    "2: zero points too many": (v2(1, "y_zero_point", [1, 2]), M2 + ": y_zero_point: shape (2,) does not fit"),
    "2: bias with a zero point": (v2(0, "output_dtype", "int32"), X2 + ": output_dtype: a grid of 32 bits"),
    "2: axis missing": (v2(1, "axis"), M2 + ": axis: this field is missing, for there are 6 scales"),
    "2: axis of the inputs": (v2(1, "axis", 0), M2 + ": y_scale: scales of shape (6,) do not fit the 4 channels"),
    "2: axis too large": (v2(1, "axis", 5), M2 + ": axis: 5 does not exist in 'matmul.w'"),
    "2: axis too small": (v2(1, "axis", -3), M2 + ": axis: must be a whole number from -2"),
    "2: axis of an activation": (v2(0, "axis", 0), X2 + ": axis: "),
    "2: blocks without axis": (v2(2, "axis"), U2 + ": axis: this field is missing, which block_size needs"),
    "2: blocks of 3": (v2(2, "block_size", 3), U2 + ": block_size: blocks of 3 on axis 0 of 'up.w'"),
    "2: blocks of another shape": (v2(2, "y_scale", [[0.5] * 6] * 2), U2),
    "2: lpbq with a scale": (v2(3, "y_scale", 0.5), C2 + ": y_scale: an lpbq entry has its scale in two parts"),
    "2: lpbq, one part": (v2(3, "per_channel_float_scale"), C2 + ": per_channel_float_scale: this field is missing"),
    "2: lpbq, other part": (v2(3, "per_block_int_scale"), C2 + ": per_block_int_scale: this field is missing"),
    "2: lpbq, no size": (v2(3, "block_size"), C2 + ": "),
    "2: lpbq, shapes": (v2(3, "per_channel_float_scale", [0.5] * 8), C2 + ": per_channel_float_scale: shape (8,)"),
    "2: lpbq, fractions": (
        v2(3, "per_block_int_scale", [[[[1.5]], [[2]]]] * 8),
        C2 + ": per_block_int_scale: must be whole",
    ),
    "2: field unknown": (v2(0, "zero_point", 3), X2 + ": zero_point: unknown field (did you mean 'y_zero_point'?)"),
}  # fmt: skip


@pytest.mark.parametrize("version", GOOD)
def test_the_files_that_are_spoilt_below_are_good(version: str, tmp_path: Path) -> None:
    (tmp_path / "m.encodings").write_text(json.dumps(GOOD[version]))
    read = read_encodings(tmp_path / "m.encodings", NAMES)
    assert len(read) == (2 if version == "0.6.1" else 4)
    assert not read.unmapped


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_by_file_entry_and_field(case: str, tmp_path: Path) -> None:
    text, message = MALFORMED[case]
    path = tmp_path / "m.encodings"
    path.write_text(text, "utf-8")
    with pytest.raises(EncodingError) as error:
        read_encodings(path, NAMES)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "m.encodings").write_bytes(json.dumps(V1).encode("utf-16"))
    with pytest.raises(EncodingError, match=r"cannot read encodings file .*m\.encodings"):
        read_encodings(tmp_path / "m.encodings")


# --- fuzzing --------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(HUGE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
plausible = st.sampled_from(
    [0, -1, 1, 2, 8, 32, 2**31, 0.5, -128, "True", "INT", "FLOAT", "LPBQ", "int8", [0.5], [[1]], [-8] * 6]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(*path, key) for key, _ in items] + [p for key, inner in items for p in places(inner, (*path, key))]


PLACES = {version: places(document) for version, document in GOOD.items()}


def read_or_refuse(text: str, path: Path, with_model: bool) -> None:
    path.write_text(text, "utf-8", errors="surrogatepass")
    try:
        read_encodings(path, NAMES if with_model else None)
    except EncodingError as refused:
        message = str(refused)
    else:
        return
    assert str(path) in message


@pytest.mark.parametrize("version", GOOD)
@given(data=st.data())
def test_any_place_may_hold_anything(
    version: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = data.draw(st.sampled_from(PLACES[version]))
    text = spoilt(GOOD[version], *keys, value=data.draw(json_values | plausible))
    read_or_refuse(text, tmp_path_factory.getbasetemp() / "fuzz.encodings", data.draw(st.booleans()))


@pytest.mark.parametrize("version", GOOD)
@given(data=st.data())
def test_any_damaged_text_is_read_or_refused(
    version: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = json.dumps(GOOD[version])
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 20, len(text))))
    damaged = text[:start] + data.draw(st.text(max_size=5)) + text[end:]
    read_or_refuse(damaged, tmp_path_factory.getbasetemp() / "damaged.encodings", True)
