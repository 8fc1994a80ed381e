"""Which channels go together: a sliced model is the whole one with those channels masked, whatever stands between."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_backend import NumpyModel, checked
from sketch import Sketch

from isobit.backend import CheckedModel
from isobit.canonical import canonicalize
from isobit.edits import Slice, SliceTogether
from isobit.edits.records import edits_from_records, edits_to_records
from isobit.edits.slicing.channel_coupling import Coupling
from isobit.edits.slicing.channel_relations import Slot
from isobit.edits.slicing.slice_channels import kept_channels
from isobit.errors import EditError
from isobit.graph.check_graph import check_graph
from isobit.techniques.pruning.channel_groups import edit_of, find_groups

SIDE = 4


class Drawn:
    """A network of images that is drawn op by op; each op takes tensors of (N, channels, SIDE, SIDE)."""

    def __init__(self) -> None:
        self.sketch = Sketch()
        self.channels = {self.sketch.input("x", "N", 3, SIDE, SIDE): 3}

    def _add(self, op: str, *inputs: str, channels: int, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.channels)}"
        self.channels[self.sketch.node(op, *inputs, name=name, shape=("N", channels, SIDE, SIDE), **attributes)] = (
            channels
        )
        return name

    def conv(self, x: str, out: int, group: int = 1) -> str:
        name = f"conv{len(self.channels)}"
        shape = (out, self.channels[x] // group, 3, 3)
        weight = self.sketch.weight(f"{name}.w", self.sketch.rng.standard_normal(shape) / np.sqrt(shape[1] * 9))
        bias = self.sketch.random(f"{name}.b", out)
        return self._add("Conv", x, weight, bias, channels=out, group=group, pads=(1,) * 4)

    def step(self, kind: str, x: str, other: str, out: int) -> str:
        """One op of a kind on x; `other` is a second tensor where the op takes two."""
        count = self.channels[x]
        if kind == "conv":
            return self.conv(x, out)
        if kind == "depthwise":
            return self.conv(x, count * 2, count)
        if kind == "grouped":
            return self.conv(self.conv(x, 4), 6, 2)
        if kind == "norm":
            name = f"batchnormalization{len(self.channels)}"
            self.channels[self.sketch.batch_norm(name, x, count, ("N", count, SIDE, SIDE))] = count
            return name
        if kind == "curve":
            return self._add("Sigmoid", x, channels=count)
        if kind == "scale":
            return self._add("Mul", x, self.sketch.random(f"s{len(self.channels)}", count, 1, 1), channels=count)
        if kind == "residual":
            return self._add("Add", x, self.conv(other, count), channels=count)
        if kind == "sum":
            same = count == self.channels[other]
            return self._add("Add", x, other if same else self.conv(other, count), channels=count)
        if kind == "gate":
            return self._add("Mul", self._add("Sigmoid", self.conv(other, 1), channels=1), x, channels=count)
        if kind == "concat":
            return self._add("Concat", x, other, channels=count + self.channels[other], axis=1)
        if kind == "part" and count > 1:
            cut = {"starts": (1,), "ends": (count,), "axes": (1,), "steps": (1,)}
            return self._add("Slice", x, channels=count - 1, **cut)
        if kind == "shuffle" and count % 2 == 0:
            number = len(self.channels)
            parts = self.sketch.node("Reshape", x, name=f"p{number}", shape=("N", 2, count // 2, SIDE, SIDE))
            turned = self.sketch.node(
                "Transpose", parts, name=f"q{number}", shape=("N", count // 2, 2, SIDE, SIDE), perm=(0, 2, 1, 3, 4)
            )
            return self._add("Reshape", turned, channels=count)
        if kind == "there and back":
            turned = self.sketch.node(
                "Transpose", x, name=f"t{len(self.channels)}", shape=("N", SIDE, SIDE, count), perm=(0, 2, 3, 1)
            )
            relu = self.sketch.node("Relu", turned, name=f"r{len(self.channels)}", shape=("N", SIDE, SIDE, count))
            return self._add("Transpose", relu, channels=count, perm=(0, 3, 1, 2))
        return self._add("Relu", x, channels=count)

    def model(self, x: str) -> CheckedModel:
        count = self.channels[x] * SIDE * SIDE
        flat = self.sketch.node("Reshape", x, name="flat", shape=("N", count))
        y = self.sketch.node("Linear", flat, self.sketch.random("fc.w", 2, count), name="fc", shape=("N", 2))
        return checked(canonicalize(self.sketch.graph(y)), self.sketch.values)


KINDS = "conv|depthwise|grouped|norm|curve|scale|residual|gate|concat|part|relu|shuffle|there and back".split("|")


def masked(model: CheckedModel, edit: Slice | SliceTogether) -> CheckedModel:
    """A copy whose constants are 0 wherever the edit would cut them."""
    copied = model.copy()
    assert isinstance(copied.inner, NumpyModel)
    slices = edit.slices if isinstance(edit, SliceTogether) else (edit,)
    for slot, kept in kept_channels(Coupling(model.graph), *slices).items():
        if slot.name in model.graph.weights:
            gone = np.delete(np.arange(model.weight(slot.name).shape[slot.axis]), kept)
            index: list[Any] = [slice(None)] * slot.axis + [gone]
            copied.inner.weights[slot.name][tuple(index)] = 0
    return copied


def refused(model: CheckedModel, edit: Slice) -> str:
    """Why an edit is refused, or an empty text."""
    try:
        kept_channels(Coupling(model.graph), edit)
    except EditError as refusal:
        return str(refusal)
    return ""


def assert_sliced_is_masked(model: CheckedModel, edit: Slice | SliceTogether, *shape: int) -> None:
    batch = {"x": np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32)}
    expected = masked(model, edit).run(batch)
    before = sum(model.weight(name).size for name in model.graph.weights)
    model.edit([edit])
    check_graph(model.graph)
    for name, value in model.run(batch).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4)
    assert sum(model.weight(name).size for name in model.graph.weights) < before


@given(
    steps=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(1, 4)), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_sliced_is_masked_in_drawn_networks(steps: list[tuple[str, int, int]], seed: int) -> None:
    drawn = Drawn()
    x = drawn.conv("x", 4)
    for kind, other, out in steps:
        x = drawn.step(kind, x, list(drawn.channels)[other % len(drawn.channels)], out)
    model = drawn.model(x)
    rng = np.random.default_rng(seed)
    layers = [node.outputs[0] for node in model.graph.nodes if node.op == "Conv"]
    tensor = layers[int(rng.integers(len(layers)))]
    count = model.graph.tensors[tensor].shape[1]
    numbers = Coupling(model.graph).of([Slot(tensor, 1)]).numbers[Slot(tensor, 1)]
    chosen = np.unique(numbers)[rng.random(len(np.unique(numbers))) < 0.5]
    keep = np.flatnonzero(np.isin(numbers, chosen)).tolist()
    refusal = refused(model, Slice(tensor, tuple(keep)))
    assert not refusal or any(word in refusal for word in ("model input", "nothing would be left", "channels to keep"))
    if not refusal and len(keep) < count:
        assert_sliced_is_masked(model, Slice(tensor, tuple(keep)), 3, SIDE, SIDE)


@pytest.mark.parametrize("shape", ["residual", "chain", "each other"])
def test_all_groups_go_at_once(shape: str) -> None:
    """Convolutions in groups that keep one input in each are no depthwise ones to the groups behind or before them."""
    drawn = Drawn()
    stem = drawn.conv("x", 8)
    inner = drawn.conv(stem, 8, {"residual": 1, "chain": 4, "each other": 4}[shape])
    x = drawn.conv(inner, 8, 2 if shape == "chain" else 4)
    if shape != "chain":
        x = drawn.step("sum", x, stem, 8)
    model = drawn.model(drawn.conv(x, 3))
    groups = {group.name: group for group in find_groups(model.graph)[0]}
    assert [groups[name].count for name in (stem, inner)] == [2, 2]
    edit = edit_of(model.graph, [(group, range(1, group.count, 2)) for group in groups.values()])
    assert_sliced_is_masked(model, edit, 3, SIDE, SIDE)
    inputs = 4 if shape == "residual" else 1
    assert [model.weight(f"{name}.w").shape[:2] for name in (stem, inner)] == [(4, 3), (4, inputs)]


def test_slices_at_once_are_read_again_as_they_were_written() -> None:
    records, arrays = edits_to_records([SliceTogether((Slice("a", (0, 2)), Slice("b", (1,)))), Slice("c", (3,))])
    read = edits_from_records(json.loads(json.dumps(records)), arrays)
    assert [repr(edit) for edit in read] == [
        "SliceTogether(slices=(Slice(tensor='a', keep=(0, 2)), Slice(tensor='b', keep=(1,))))",
        "Slice(tensor='c', keep=(3,))",
    ]


def test_slices_at_once_drop_what_one_of_them_drops() -> None:
    """A second slice of what goes with the first; and none of them happens where one is refused."""
    drawn = Drawn()
    first = drawn.conv("x", 4)
    second = drawn.step("relu", first, first, 4)
    model = drawn.model(drawn.conv(second, 3))
    blocked = SliceTogether((Slice(first, (0, 1)), Slice("x", (0,))))
    with pytest.raises(EditError, match="channels of model input 'x' cannot be removed"):
        model.edit([blocked])
    assert model.weight(f"{first}.w").shape[0] == 4
    nothing = SliceTogether((Slice(first, (0, 1)), Slice(second, (2, 3))))
    with pytest.raises(EditError, match="nothing would be left"):
        model.edit([nothing])
    assert_sliced_is_masked(model, SliceTogether((Slice(first, (0, 1, 2)), Slice(second, (0, 2, 3)))), 3, SIDE, SIDE)
    assert model.weight(f"{first}.w").shape[0] == 2


@settings(max_examples=30)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from("conv|grouped|depthwise|sum|concat|shuffle".split("|")), st.integers(0, 9)),
        min_size=2,
        max_size=6,
    ),
    seed=st.integers(0, 99),
)
def test_all_groups_go_at_once_in_drawn_networks(steps: list[tuple[str, int]], seed: int) -> None:
    drawn, rng = Drawn(), np.random.default_rng(seed)
    x = drawn.conv("x", 4)
    for kind, other in steps:
        names = list(drawn.channels)
        x = drawn.step(kind, x, names[other % len(names)], 4)
    model = drawn.model(drawn.conv(x, 2))
    groups = find_groups(model.graph)[0]
    chosen = [(group, rng.permutation(group.count)[: rng.integers(1, group.count)].tolist()) for group in groups]
    edit = edit_of(model.graph, chosen)
    if chosen:
        assert_sliced_is_masked(model, edit, 3, SIDE, SIDE)


def test_heads_of_attention_go_whole() -> None:
    """Two of four heads of width 3: query, key, value and what reads the joined heads."""
    sketch = Sketch()
    x = sketch.input("x", "N", 5, 8)

    def heads(name: str, perm: tuple[int, ...]) -> str:
        y = sketch.node("Linear", x, sketch.random(f"{name}.w", 12, 8), name=name, shape=("N", 5, 12))
        y = sketch.node("Reshape", y, name=f"{name}.split", shape=("N", 5, 4, 3))
        shape = tuple(("N", 5, 4, 3)[axis] for axis in perm)
        return sketch.node("Transpose", y, name=f"{name}.heads", shape=shape, perm=perm)

    q, k, v = heads("q", (0, 2, 1, 3)), heads("k", (0, 2, 3, 1)), heads("v", (0, 2, 1, 3))
    scores = sketch.node("MatMul", q, k, name="scores", shape=("N", 4, 5, 5))
    weights = sketch.node("Softmax", scores, name="weights", shape=("N", 4, 5, 5), axis=-1)
    mixed = sketch.node("MatMul", weights, v, name="mixed", shape=("N", 4, 5, 3))
    turned = sketch.node("Transpose", mixed, name="turned", shape=("N", 5, 4, 3), perm=(0, 2, 1, 3))
    joined = sketch.node("Reshape", turned, name="joined", shape=("N", 5, 12))
    y = sketch.node("Linear", joined, sketch.random("out.w", 8, 12), name="out", shape=("N", 5, 8))
    model = checked(canonicalize(sketch.graph(y)), sketch.values)
    assert_sliced_is_masked(model, Slice("q", (0, 1, 2, 6, 7, 8)), 5, 8)
    assert {name: model.weight(f"{name}.w").shape for name in ("q", "k", "v", "out")} == {
        "q": (6, 8),
        "k": (6, 8),
        "v": (6, 8),
        "out": (8, 6),
    }


def test_packed_queries_keys_and_values_lose_the_same_heads() -> None:
    """One layer makes all three: each loses two of four heads of width 3, and nothing else of it can go."""
    sketch = Sketch()
    x = sketch.input("x", "N", 5, 8)
    packed = sketch.node("Linear", x, sketch.random("qkv.w", 36, 8), name="qkv", shape=("N", 5, 36))
    packed = sketch.node("Reshape", packed, name="split", shape=("N", 5, 3, 4, 3))
    packed = sketch.node("Transpose", packed, name="heads", shape=(3, "N", 4, 5, 3), perm=(2, 0, 3, 1, 4))
    numbers = {name: sketch.weight(f"{name}.number", i, np.int64) for i, name in enumerate("qkv")}
    q, k, v = (
        sketch.node("Gather", packed, number, name=name, shape=("N", 4, 5, 3), axis=0)
        for name, number in numbers.items()
    )
    k = sketch.node("Transpose", k, name="k.turned", shape=("N", 4, 3, 5), perm=(0, 1, 3, 2))
    scores = sketch.node("MatMul", q, k, name="scores", shape=("N", 4, 5, 5))
    weights = sketch.node("Softmax", scores, name="weights", shape=("N", 4, 5, 5), axis=-1)
    mixed = sketch.node("MatMul", weights, v, name="mixed", shape=("N", 4, 5, 3))
    turned = sketch.node("Transpose", mixed, name="turned", shape=("N", 5, 4, 3), perm=(0, 2, 1, 3))
    joined = sketch.node("Reshape", turned, name="joined", shape=("N", 5, 12))
    y = sketch.node("Linear", joined, sketch.random("out.w", 8, 12), name="out", shape=("N", 5, 8))
    model = checked(canonicalize(sketch.graph(y)), sketch.values)
    (group,), _ = find_groups(model.graph)
    assert (group.count, group.producers, group.readers) == (4, ("qkv",), ("out",))
    kept = [row for row in range(36) if row // 3 % 4 in (0, 2)]
    assert_sliced_is_masked(model, Slice("qkv", tuple(kept)), 5, 8)
    assert (model.weight("qkv.w").shape, model.weight("out.w").shape) == ((18, 8), (8, 6))
    assert "go together" in refused(model, Slice("qkv", tuple(range(17))))


def test_parts_of_a_split_go_on_their_own_ways() -> None:
    sketch = Sketch()
    y = sketch.node("Linear", sketch.input("x", "N", 3), sketch.random("w", 6, 3), name="first", shape=("N", 6))
    sketch.split("parts", y, {"parts": ("N", 4), "rest": ("N", 2)}, axis=1, split=(4, 2))
    left = sketch.node("Linear", "parts", sketch.random("left.w", 2, 4), name="left", shape=("N", 2))
    right = sketch.node("Mul", "rest", left, name="right", shape=("N", 2))
    y = sketch.node("Linear", right, sketch.random("last.w", 2, 2), name="last", shape=("N", 2))
    model = checked(canonicalize(sketch.graph(y)), sketch.values)
    assert_sliced_is_masked(model, Slice("first", (0, 2, 3, 5)), 3)
    assert model.graph.node("parts").attributes["split"] == (3, 1)
    assert model.weight("left.w").shape == (1, 3)  # the second part is multiplied by what it makes


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        ("LayerNormalization", {"axis": -1, "epsilon": 1e-5}, "node 'block' (LayerNormalization) mixes channels"),
        ("Softmax", {"axis": -1}, "node 'block' (Softmax) mixes channels"),
        ("If", {}, "node 'block' (If) blocks the removal of channels"),
        ("torch::unknown", {}, "node 'block' (torch::unknown) blocks the removal of channels"),
    ],
)
def test_what_blocks_is_named(op: str, attributes: dict[str, Any], reason: str) -> None:
    sketch = Sketch()
    y = sketch.node("Linear", sketch.input("x", "N", 3), sketch.random("w", 4, 3), name="first", shape=("N", 4))
    y = sketch.node(op, y, name="block", shape=("N", 4), **attributes)
    y = sketch.node("Linear", y, sketch.random("last.w", 2, 4), name="last", shape=("N", 2))
    coupled = Coupling(canonicalize(sketch.graph(y))).of([Slot("first", 1)])
    numbers = coupled.numbers[Slot("first", 1)].tolist()
    assert {coupled.fixed[number] for number in numbers} == {reason}
