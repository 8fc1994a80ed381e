"""AIMET's files: what a version can hold comes back bit for bit, and what it cannot is refused or said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_names import NAMES, WEIGHTS, weight_encoding
from hypothesis import given
from hypothesis import strategies as st

from isobit.encodings import Encoding, Encodings, QuantSpec
from isobit.encodings.same_levels import same_levels
from isobit.errors import EncodingError
from isobit.formats import Names
from isobit.formats.native_grid import canonical_encoding, native_form
from isobit.graph import Graph, Input, Node, Site, Tensor, TensorInfo, Weight, WeightInfo, to_native
from isobit.quantsim import read_encodings, write_encodings

FORMATS = ["aimet-0.6.1", "aimet-1.0.0", "aimet-2.0.0"]

scales = st.floats(float(np.float32(1e-30)), float(np.float32(1e30)), width=32)


@st.composite
def activations(draw: st.DrawFn) -> Encoding:
    spec = QuantSpec.parse(
        draw(st.sampled_from(["uint8", "int8", "uint16", "int4", "uint4 symmetric", "int8 asymmetric"]))
    )
    zero = 0 if spec.symmetric else draw(st.integers(spec.q_min, spec.q_max))
    return Encoding.of(spec, draw(scales), zero)


@st.composite
def weights(draw: st.DrawFn, form: str) -> tuple[str, Encoding]:
    name = draw(st.sampled_from(sorted(WEIGHTS)))
    kinds = ["int8 per-tensor", "int8 per-channel", "uint4 per-channel"]
    if form != "aimet-0.6.1" and name != "grouped.w":
        kinds += ["int4 block=2", "int4 lpbq=2", "uint8 block=2"]
    if form == "aimet-2.0.0":
        kinds.append("float8e4m3 per-channel")
    return name, weight_encoding(name, draw(st.sampled_from(kinds)), draw(st.integers(0, 99)))


def back(items: dict[Site, Encoding], form: str, path: Path, names: Names | None = NAMES) -> Encodings:
    write_encodings(Encodings(items), path, form, names)
    return read_encodings(path, names)  # recognised by content


@pytest.mark.parametrize("form", FORMATS)
@given(data=st.data())
def test_scales_and_levels_come_back(form: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    name, weight = data.draw(weights(form))
    items: dict[Site, Encoding] = {Tensor("relu"): data.draw(activations()), Weight(name): weight}
    read = back(items, form, tmp_path_factory.mktemp("f") / "m.encodings")
    assert list(read) == list(items)
    assert not read.unmapped
    for site, written in items.items():
        # AIMET has no signed asymmetric type before 2.0.0, and ONNX none that is symmetric: the levels are the same
        assert same_levels(read[site], written.spec) == written
    again = back(dict(read), form, tmp_path_factory.mktemp("f") / "again.encodings")
    assert again == read, "a second time nothing changes at all"


@pytest.mark.parametrize("form", FORMATS[:2])
def test_half_precision_and_biases(form: str, tmp_path: Path) -> None:
    items: dict[Site, Encoding] = {
        Tensor("x"): Encoding.of("float16", 1.0),
        Weight("conv.b"): Encoding.of("int32 per-channel", np.full(8, 0.5), axis=0),
    }
    notes = write_encodings(Encodings(items), tmp_path / "m.encodings", form, NAMES)
    assert any("leaves out the 1 int32 biases" in note for note in notes)
    assert dict(read_encodings(tmp_path / "m.encodings", NAMES)) == {Tensor("x"): items[Tensor("x")]}


@pytest.mark.parametrize("form", FORMATS[:2])
def test_biases_of_several_scales_are_left_out_as_others_are(form: str, tmp_path: Path) -> None:
    """Layers that share a bias and read tensors of different ranges, as a block at several dilations does."""
    nodes = [Node(name, "Linear", (name[0], "w", "b"), (name,)) for name in ("x1", "y2", "y3")]
    tensors = {name: TensorInfo((1, 8)) for name in ("x", "y", "x1", "y2", "y3")}
    weights = {"w": WeightInfo((8, 8)), "b": WeightInfo((8,))}
    names = Names.of(Graph(tuple(nodes), ("x", "y"), {n: n for n in ("x1", "y2", "y3")}, tensors, weights))
    kept: dict[Site, Encoding] = {
        **{Tensor("x"): Encoding.of("uint8", 0.5), Tensor("y"): Encoding.of("uint8", 0.25)},
        Weight("w"): Encoding.of("int8 per-channel", np.full(8, 0.5), axis=0),
    }
    scales = {"x1": 0.25, "y2": 0.125, "y3": 0.125}
    biases = {Input(n, 2): Encoding.of("int32 per-channel", np.full(8, s), axis=0) for n, s in scales.items()}
    notes = write_encodings(Encodings({**kept, **biases}), tmp_path / "m.encodings", form, names)
    assert any("leaves out the 3 int32 biases" in note for note in notes)
    assert dict(read_encodings(tmp_path / "m.encodings", names)) == kept


def test_version_2_holds_biases_and_says_that_it_has_no_halves(tmp_path: Path) -> None:
    bias = Encoding.of("int32 per-channel", np.linspace(0.1, 1, 8), axis=0)
    items: dict[Site, Encoding] = {Weight("conv.b"): bias, Tensor("x"): Encoding.of("bfloat16", 1.0)}
    notes = write_encodings(Encodings(items), tmp_path / "m.encodings", "aimet-2.0.0", NAMES)
    assert any("has no 16-bit floats: x are left out" in note for note in notes)
    assert dict(read_encodings(tmp_path / "m.encodings", NAMES)) == {Weight("conv.b"): bias}


@pytest.mark.parametrize(
    ("form", "encoding", "message"),
    [
        ("aimet-0.6.1", weight_encoding("conv.w", "int4 block=2"), "has no blocks; write aimet-1.0.0"),
        ("aimet-1.0.0", weight_encoding("conv.w", "float8e5m2 per-channel"), "has no float8e5m2"),
        ("aimet-1.0.0", Encoding.of("bfloat16", 1.0), "has no bfloat16"),
        ("aimet-1.0.0", Encoding.of("int8 per-channel", np.ones(4), axis=1), "no axis but that of the channels"),
        ("aimet-0.6.1", Encoding.of("int8 per-channel", np.ones(4), axis=1), "no axis but that of the channels"),
    ],
)
def test_what_a_version_cannot_hold_is_refused(form: str, encoding: Encoding, message: str, tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match=message):
        write_encodings(Encodings({Weight("conv.w"): encoding}), tmp_path / "m.encodings", form, NAMES)
    assert not list(tmp_path.iterdir())


def test_strict_grids_are_widened_and_said(tmp_path: Path) -> None:
    strict = Encodings({Tensor("x"): Encoding.of("int8 strict", 0.5)})
    notes = write_encodings(strict, tmp_path / "m.encodings", "aimet-1.0.0", NAMES)
    assert any("no strict grids" in note for note in notes)
    assert read_encodings(tmp_path / "m.encodings", NAMES)["x"] == Encoding.of("int8", 0.5)


def test_files_without_a_model_say_what_they_take_for_granted(tmp_path: Path) -> None:
    items: dict[Site, Encoding] = {Weight("w"): Encoding.of("int8 per-channel", [0.5, 0.25], axis=0)}
    for form in FORMATS:
        read = back(items, form, tmp_path / f"{form}.encodings", None)
        assert dict(read) == items
        assert "without the model" in read.notes[0]


def readers_graph() -> Graph:
    nodes = (Node("a", "Relu", ("x",), ("a",)), Node("b", "Relu", ("x",), ("b",)))
    return Graph(nodes, ("x",), {"a": "a", "b": "b"}, dict.fromkeys("xab", TensorInfo((1, 2))), {})


def test_single_readers_are_joined_where_they_agree(tmp_path: Path) -> None:
    names = Names.of(readers_graph())
    equal: dict[Site, Encoding] = dict.fromkeys([Input("a", 0), Input("b", 0)], Encoding.of("uint8", 0.5, 3))
    notes = write_encodings(Encodings(equal), tmp_path / "m.encodings", "aimet-2.0.0", names)
    assert any("does not know single readers: a[0], b[0]" in note for note in notes)
    assert read_encodings(tmp_path / "m.encodings", names)["x"] == Encoding.of("uint8", 0.5, 3)
    unequal = Encodings({**equal, Input("b", 0): Encoding.of("uint8", 0.25, 3)})
    with pytest.raises(EncodingError, match="'x' has another at 'b\\[0\\]' than at 'a\\[0\\]'"):
        write_encodings(unequal, tmp_path / "n.encodings", "aimet-2.0.0", names)


def test_entries_keyed_by_module_are_the_tensors_at_the_modules(tmp_path: Path) -> None:
    """What aimet-torch calls ``_torch.encodings``."""
    grid = {"bitwidth": 8, "dtype": "int", "is_symmetric": "False", "scale": 0.5, "offset": -3}
    modules = {"a": {"input": {"0": grid}, "output": {"0": grid}}, "b": {"output": {"0": [grid]}}}
    document = {"version": "0.6.1", "activation_encodings": modules, "param_encodings": {}}
    (tmp_path / "m_torch.encodings").write_text(json.dumps(document))
    read = read_encodings(tmp_path / "m_torch.encodings", Names.of(readers_graph()))
    assert dict(read) == dict.fromkeys([Tensor("x"), Tensor("a"), Tensor("b")], Encoding.of("uint8", 0.5, 3))


#: Entries of files that aimet-onnx 2.42 wrote, with the scales rounded.
V1: dict[str, Any] = {
    "version": "1.0.0",
    "producer": {"package": "aimet-onnx", "version": "2.42.0"},
    "activation_encodings": [
        {
            "bw": 8,
            "dtype": "INT",
            "enc_type": "PER_TENSOR",
            "is_sym": False,
            "name": "relu_out",
            "offset": [-143.0],
            "scale": [0.25],
        },
    ],
    "param_encodings": [
        {
            "bw": 4,
            "dtype": "INT",
            "enc_type": "PER_BLOCK",
            "is_sym": True,
            "name": "matmul.w",
            "block_size": 2,
            "offset": [-8.0] * 12,
            "scale": [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
        },
        {
            "block_size": 2,
            "bw": 8,
            "compressed_bw": 4,
            "dtype": "INT",
            "enc_type": "LPBQ",
            "is_sym": True,
            "name": "conv.w",
            "offset": [-128] * 8,
            "per_block_int_scale": [9, 16, 12, 16, 16, 12, 11, 16, 16, 15, 10, 16, 16, 12, 15, 16],
            "scale": [0.5, 1, 2, 4, 8, 16, 32, 64],
        },
    ],
}


def test_blocks_of_aimet_go_channel_by_channel(tmp_path: Path) -> None:
    (tmp_path / "m.encodings").write_text(json.dumps(V1))
    read = read_encodings(tmp_path / "m.encodings", NAMES)
    assert read["relu"] == Encoding.of("uint8", 0.25, 143)
    np.testing.assert_array_equal(read["matmul.w"].scale, np.arange(1, 13, dtype=np.float32).reshape(6, 2))
    assert str(read["conv.w"].spec) == "int4 symmetric lpbq=2"
    np.testing.assert_array_equal(read["conv.w"].multiplier[1].reshape(-1), [12, 16])  # type: ignore[index]
    np.testing.assert_array_equal(read["conv.w"].scale[1].reshape(-1), [12.0, 16.0])


@pytest.mark.parametrize("name", sorted(WEIGHTS))
@pytest.mark.parametrize("text", ["int8 per-channel", "int8 block=2", "int8 per-tensor"])
def test_native_scales_round_as_the_canonical_ones_do(name: str, text: str) -> None:
    """Against the definition: each native element has the scale that it has in canonical layout."""
    place = WEIGHTS[name]
    encoding = weight_encoding(name, text)
    form = native_form(encoding, place.native, place.layout)
    whole = np.broadcast_to(encoding.broadcast(place.canonical)[0], place.canonical)
    expected = to_native(whole, place.layout, np.zeros(place.native, np.float32))
    native = form.of(encoding.scale)
    if form.axis is not None and form.block_size is None:
        native = native.reshape([-1 if i == form.axis else 1 for i in range(len(place.native))])
    elif form.axis is not None and form.block_size is not None:
        native = np.repeat(native, form.block_size, form.axis)
    np.testing.assert_array_equal(np.broadcast_to(native, place.native), expected)
    if text == "int8 block=2" and name != "grouped.w":
        assert native.size == np.prod(place.native), "written out along the other axes"
        assert form.index.shape[form.axis or 0] == place.canonical[1] // 2, "one a block, not one an element"


def test_a_grouped_transposed_convolution_comes_back_per_channel() -> None:
    place, encoding = WEIGHTS["grouped.w"], weight_encoding("grouped.w", "int8 per-channel")
    form = native_form(encoding, place.native, place.layout)
    assert (form.axis, form.block_size) == (0, 2), "in ONNX's layout its channels are blocks"
    blocks = QuantSpec.parse("int8 block=2")
    scale, zero = form.of(encoding.scale), form.of(encoding.zero_point)
    assert canonical_encoding(blocks, scale, zero, 0, place.native, place.layout) == encoding
