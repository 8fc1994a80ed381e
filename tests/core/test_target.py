"""Target files: what they say, and an error for everything that they cannot say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from registries import own_registry

from isobit.encodings import QuantSpec
from isobit.errors import FormatError, TargetError, TargetWarning
from isobit.plugins import Registry
from isobit.targets import load_target, parse_target
from isobit.targets.target import FusionStep

TOML = """
schema = 1
name = "chip"
description = "A chip"

[activations]
default = "uint8"
allowed = ["uint8", "int4..6", "float16"]

[weights]
default = "int8"
allowed = ["int8", "int4", "bfloat16"]
granularities = ["per-channel", "per-tensor", "block"]
per_channel_ops = ["Conv"]

[bias]
format = "int32"

[quantize]
ops = ["*"]
except = ["Erf"]

[[fusions]]
ops = ["Conv|Linear", "BatchNormalization?", "Relu"]

[ties]
same = ["Reshape"]
joint = ["Concat"]

[fixed_ranges]
Softmax = [0, 1.0]
"""


def test_a_target_is_what_its_file_says() -> None:
    target = parse_target(TOML, "chip.toml")
    assert (target.name, target.description) == ("chip", "A chip")
    assert target.activation_types == ("uint8", "int4", "int5", "int6", "float16")
    assert target.weight_types == ("int8", "int4", "bfloat16")
    assert target.int32_bias
    relu = FusionStep(frozenset({"Relu"}))
    assert target.fusions == (
        (FusionStep(frozenset({"Conv", "Linear"})), FusionStep(frozenset({"BatchNormalization"}), optional=True), relu),
    )
    assert target.fixed_ranges == {"Softmax": (0.0, 1.0)}
    assert (target.same_encoding, target.joint_encoding) == ({"Reshape"}, {"Concat"})
    assert target.quantizes("Conv")
    assert not target.quantizes("Erf")


def test_fusions_and_fixed_ranges_may_be_missing() -> None:
    text = re.sub(r"\[\[fusions\]\]\nops.*\n", "", TOML).split("[fixed_ranges]")[0]
    target = parse_target(text, "chip.toml")
    assert (target.fusions, target.fixed_ranges) == ((), {})


def test_formats_asked_for() -> None:
    target = parse_target(TOML, "chip.toml")
    assert str(target.activation_format(None)) == "uint8 asymmetric per-tensor"
    assert str(target.activation_format("int5 asymmetric")) == "int5 asymmetric per-tensor"
    assert str(target.weight_format(None, "Conv")) == "int8 symmetric per-channel"
    assert str(target.weight_format(None, "MatMul")) == "int8 symmetric per-tensor"
    assert str(target.weight_format("int4 block=32", "MatMul")) == "int4 symmetric block=32"
    assert str(target.weight_format(QuantSpec.parse("bfloat16 per-channel"), "Conv")) == "bfloat16 per-tensor"


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ("int8", "target 'chip' cannot run activations of type int8; it runs: uint8, int4, int5, int6, float16"),
        ("uint8 per-channel", "target 'chip' quantizes activations per-tensor, not per-channel"),
        ("uint8 block=4", "not block=4"),
        ("uint", "unknown number type 'uint'"),
    ],
)
def test_activation_formats_it_cannot_run(requested: str, message: str) -> None:
    with pytest.raises(FormatError, match=re.escape(message)):
        parse_target(TOML, "chip.toml").activation_format(requested)


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ("uint8", "target 'chip' cannot run weights of type uint8; it runs: int8, int4, bfloat16"),
        ("int4 lpbq=4", "target 'chip' cannot run weights lpbq=4; it runs: per-channel, per-tensor, block"),
    ],
)
def test_weight_formats_it_cannot_run(requested: str, message: str) -> None:
    with pytest.raises(FormatError, match=re.escape(message)):
        parse_target(TOML, "chip.toml").weight_format(requested, "Conv")


def changed(old: str, new: str) -> str:
    assert TOML.count(old) == 1
    return TOML.replace(old, new)


WRONG = {
    "not TOML": (changed("schema = 1", "schema ="), "not valid TOML"),
    "unknown key": (changed('description = "A', 'descriptoin = "A'), "descriptoin: unknown key (did you mean"),
    "unknown table": (TOML + "\n[extra]\n", "extra: unknown key"),
    "no schema": (changed("schema = 1", ""), "schema: must be 1, found no such key: the file begins with 'schema = 1'"),
    "other schema": (changed("schema = 1", "schema = 2"), "schema: must be 1, found 2"),
    "schema a flag": (changed("schema = 1", "schema = true"), "schema: must be 1, found True"),
    "schema a text": (changed("schema = 1", 'schema = "1"'), "schema: must be 1, found '1'"),
    "no name": (changed('name = "chip"', ""), "name: this key is missing"),
    "name a number": (changed('name = "chip"', "name = 3"), "name: must be a text"),
    "name empty": (changed('name = "chip"', 'name = ""'), "name: must be a text"),
    "no description": (changed('description = "A chip"', ""), "description: this key is missing"),
    "table missing": (changed('[bias]\nformat = "int32"', ""), "bias: this table is missing"),
    "table a text": (
        changed('[bias]\nformat = "int32"', "").replace("schema", 'bias = "int32"\nschema'),
        "must be a table",
    ),
    "key missing": (changed('format = "int32"', ""), "bias.format: this key is missing"),
    "unknown key in a table": (
        changed("per_channel_ops", "per_chanel_ops"),
        "weights.per_chanel_ops: unknown key (did",
    ),
    "text for a list": (changed('ops = ["*"]', 'ops = "*"'), "quantize.ops: must be a list of texts, found '*'"),
    "list for a text": (changed('default = "uint8"', 'default = ["uint8"]'), "activations.default: must be a text"),
    "list of numbers": (
        changed('except = ["Erf"]', "except = [3]"),
        "quantize.except: must be a list of texts, found 3",
    ),
    "ties of numbers": (
        changed('same = ["Reshape"]', "same = [true]"),
        "ties.same: must be a list of texts, found True",
    ),
    "bad format": (
        changed('default = "uint8"', 'default = "unit8"'),
        "activations.default: unknown number type 'unit8'",
    ),
    "default not allowed": (
        changed('default = "int8"', 'default = "int6"'),
        "weights.default: int6 is not among weights",
    ),
    "activations per channel": (changed('default = "uint8"', 'default = "uint8 per-channel"'), "activations.default: "),
    "default granularity": (
        changed('default = "int8"', 'default = "int8 lpbq=8"'),
        "weights.default: lpbq=8 is not among",
    ),
    "type of nonsense": (changed('"int4..6"', '"int4..x"'), "activations.allowed: unknown number type"),
    "range reversed": (changed('"int4..6"', '"int6..4"'), "activations.allowed: 'int6..4' is no type"),
    "range too wide": (changed('"int4..6"', '"int4..17"'), "activations.allowed: 'int4..17' is no type"),
    "type with granularity": (changed('"int4..6"', '"int4 block=2"'), "activations.allowed: 'int4 block=2' is no type"),
    "unknown granularity": (changed('"block"]', '"blocks"]'), "weights.granularities: unknown 'blocks'; known are"),
    "no granularity": (
        changed('["per-channel", "per-tensor", "block"]', "[]"),
        "weights.granularities: must name at least",
    ),
    "bias format": (
        changed('format = "int32"', 'format = "int16"'),
        "bias.format: must be 'int32' or 'float', found 'int16'",
    ),
    "fusions a table": (changed("[[fusions]]", "[fusions]"), "fusions: must be tables written [[fusions]]"),
    "fusion of one": (changed('"BatchNormalization?", "Relu"]', "]"), "fusions[0].ops: needs at least two places"),
    "optional first": (
        changed('"Conv|Linear"', '"Conv|Linear?"'),
        "fusions[0].ops: needs at least two places, and the first",
    ),
    "fusion of numbers": (changed('"Relu"]', "3]"), "fusions[0].ops: must be a list of op names, found 3"),
    "fusion of nothing": (changed('"Relu"]', '"?"]'), "fusions[0].ops: must be a list of op names, found '?'"),
    "fusion without ops": (
        changed('ops = ["Conv|Linear"', 'op = ["Conv|Linear"'),
        "fusions[0]: must hold one key, ops",
    ),
    "fusion ops a text": (
        changed('ops = ["Conv|Linear", "BatchNormalization?", "Relu"]', 'ops = "Conv"'),
        "fusions[0]: must",
    ),
    "range of one": (changed("[0, 1.0]", "[0]"), "fixed_ranges.Softmax: must be [minimum, maximum], found [0]"),
    "range of texts": (changed("[0, 1.0]", '["0", "1"]'), "fixed_ranges.Softmax: must be [minimum, maximum]"),
    "range of flags": (changed("[0, 1.0]", "[false, true]"), "fixed_ranges.Softmax: must be [minimum, maximum]"),
    "range upside down": (changed("[0, 1.0]", "[1.0, 0]"), "fixed_ranges.Softmax: must be [minimum, maximum]"),
    "range infinite": (changed("[0, 1.0]", "[0, inf]"), "fixed_ranges.Softmax: must be [minimum, maximum]"),
    "range not a number": (changed("[0, 1.0]", "[0, nan]"), "fixed_ranges.Softmax: must be [minimum, maximum]"),
    "ranges a list": (
        changed("[fixed_ranges]\nSoftmax = [0, 1.0]", "").replace("schema", "fixed_ranges = []\nschema"),
        "fixed_ranges: ",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_every_wrong_key_is_named_with_its_file(case: str) -> None:
    text, message = WRONG[case]
    with pytest.raises(TargetError, match=r"^some/chip\.toml: .*") as error:
        parse_target(text, "some/chip.toml")
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"cannot read target file .*missing\.toml"):
        load_target(tmp_path / "missing.toml")
    latin = tmp_path / "latin.toml"
    latin.write_bytes(TOML.replace("A chip", "für").encode("latin-1"))
    with pytest.raises(TargetError, match=r"latin\.toml: it is not text in UTF-8"):
        load_target(latin)


@pytest.fixture(scope="module")
def own_plugins() -> Registry:
    return own_registry()


@pytest.mark.parametrize("name", ["default", "onnxruntime-cpu", "onnxruntime-cpu-transformer"])
def test_the_targets_that_come_with_isobit(own_plugins: Registry, name: str) -> None:
    target = own_plugins.target(name)
    assert target.name == name
    assert own_plugins.target(target) is target
    for op in ("Conv", "Linear", "MatMul", "Gather"):
        assert str(target.weight_format(None, op)).startswith("int8 symmetric per-")
    assert str(target.activation_format(None)) == "uint8 asymmetric per-tensor"


def test_targets_by_name_and_by_file(own_plugins: Registry, tmp_path: Path) -> None:
    path: Any = tmp_path / "chip.toml"
    path.write_text(TOML)
    assert own_plugins.target(path) == own_plugins.target(str(path)) == parse_target(TOML, "")
    with pytest.raises(TargetError, match=re.escape("unknown target 'defualt' (did you mean 'default'?); known are")):
        own_plugins.target("defualt")
    assert own_plugins.target(Path("default")).name == "default"


COSTS = """
[[costs]]
processor = "a chip"
quantize = 0.3
dequantize = 0.2
float = { Add = 1, Relu = 0.5 }
integer = { Add = 0.5 }
"""


def test_costs_are_what_the_file_says() -> None:
    assert parse_target(TOML, "chip.toml").costs == ()
    (costs,) = parse_target(TOML + COSTS, "chip.toml").costs
    assert (costs.processor, costs.quantize, costs.dequantize) == ("a chip", 0.3, 0.2)
    assert (costs.floats, costs.integers) == ({"Add": 1.0, "Relu": 0.5}, {"Add": 0.5})
    assert costs.multiply == {}
    assert own_registry().target("onnxruntime-cpu").costs[0].multiply["Conv"] > 0


def test_what_multiplies_are_layers_with_weights() -> None:
    (costs,) = parse_target(TOML + COSTS + "multiply = { Conv = 0.02, LSTM = 0.05 }\n", "chip.toml").costs
    assert costs.multiply == {"Conv": 0.02, "LSTM": 0.05}
    (costs,) = parse_target(TOML + COSTS + "layer_element = 0.08\n", "chip.toml").costs
    assert costs.layer_element == 0.08
    with pytest.raises(TargetError, match="layer_element: must be nanoseconds for an element"):
        parse_target(TOML + COSTS + "layer_element = -1\n", "chip.toml")
    (costs,) = parse_target(TOML + COSTS + "channel_block = 16\n", "chip.toml").costs
    assert costs.channel_block == 16
    with pytest.raises(TargetError, match="channel_block: must be a whole number of at least 1, found 0"):
        parse_target(TOML + COSTS + "channel_block = 0\n", "chip.toml")
    for text, words in (("{ Relu = 1.0 }", "multiply.Relu: only operations with weights"), ("3", "must be a table")):
        with pytest.raises(TargetError, match=words):
            parse_target(TOML + COSTS + f"multiply = {text}\n", "chip.toml")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[[costs]]", "[costs]", r"costs: must be tables written \[\[costs\]\]"),
        ("quantize = 0.3\n", "", r"costs\[0\].quantize: this key is missing"),
        ("quantize = 0.3", "quantise = 0.3", r"costs\[0\].quantise: unknown key \(did you mean 'quantize'"),
        ("quantize = 0.3", "quantize = nan", r"costs\[0\].quantize: must be nanoseconds for an element.*found nan"),
        ("quantize = 0.3", "quantize = -1", r"costs\[0\].quantize: must be nanoseconds"),
        ("quantize = 0.3", "quantize = true", r"costs\[0\].quantize: must be nanoseconds"),
        ('"a chip"', "[]", r"costs\[0\].processor: must be a text that names the processor"),
        ("{ Add = 0.5 }", "0.5", r"costs\[0\].integer: must be a table of costs by operation"),
        ("{ Add = 0.5 }", '{ Add = "1" }', r"costs\[0\].integer.Add: must be nanoseconds"),
        ("{ Add = 0.5 }", "{ Mul = 0.5 }", r"costs\[0\].integer.Mul: needs the cost in float beside it"),
        ("{ Add = 0.5 }", "{ Conv = 0.5 }", r"costs\[0\].integer.Conv: Conv has weights.*quantize.except"),
        (
            "{ Add = 0.5 }",
            "{ Add = 0.5 }" + COSTS.replace("Add = 0.5", ""),
            r"costs\[1\].integer: Add must be in every",
        ),
    ],
)
def test_costs_that_cannot_be_read(old: str, new: str, problem: str) -> None:
    with pytest.raises(TargetError, match=r"^chip.toml: " + problem):
        parse_target(TOML + COSTS.replace(old, new, 1), "chip.toml")


CONVOLUTIONS = """
[[convolutions]]
processor = "a chip"
channel_block = 8
multiply = 0.02
integer_multiply = 0.01
element = 0.1
integer_element = 0.2
integer_tap = 2
reorder = 0.3
quantize = 0.3
dequantize = 0.2
node = 1000
curves = { HardSwish = 0.5 }
"""


def test_costs_of_convolutions_are_what_the_file_says() -> None:
    assert parse_target(TOML, "chip.toml").convolutions == ()
    (costs,) = parse_target(TOML + CONVOLUTIONS, "chip.toml").convolutions
    assert (costs.processor, costs.channel_block, costs.multiply, costs.integer_tap) == ("a chip", 8, 0.02, 2.0)
    assert (costs.node, costs.curves) == (1000.0, {"HardSwish": 0.5})
    assert own_registry().target("onnxruntime-cpu").convolutions[0].curves["HardSwish"] > 0


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[[convolutions]]", "[convolutions]", r"convolutions: must be tables written \[\[convolutions\]\]"),
        ("node = 1000\n", "", r"convolutions\[0\].node: this key is missing"),
        ("node = 1000", "nodes = 1000", r"convolutions\[0\].nodes: unknown key \(did you mean 'node'"),
        ("element = 0.1", "element = nan", r"convolutions\[0\].element: must be nanoseconds.*found nan"),
        ("element = 0.1", "element = -1", r"convolutions\[0\].element: must be nanoseconds"),
        ("element = 0.1", "element = true", r"convolutions\[0\].element: must be nanoseconds"),
        (
            "channel_block = 8",
            "channel_block = 0",
            r"convolutions\[0\].channel_block: must be a whole number of at least 1",
        ),
        ("channel_block = 8", "channel_block = 8.0", r"convolutions\[0\].channel_block: must be a whole number"),
        ('"a chip"', '""', r"convolutions\[0\].processor: must be a text that names the processor"),
        ("{ HardSwish = 0.5 }", "0.5", r"convolutions\[0\].curves: must be a table of costs by operation"),
        ("HardSwish = 0.5", 'HardSwish = "much"', r"convolutions\[0\].curves.HardSwish: must be nanoseconds"),
    ],
)
def test_costs_of_convolutions_that_cannot_be(old: str, new: str, problem: str) -> None:
    text = TOML + CONVOLUTIONS
    assert old in text
    with pytest.raises(TargetError, match="^chip.toml: " + problem):
        parse_target(text.replace(old, new), "chip.toml")


def test_curves_that_do_not_exist_are_said() -> None:
    with pytest.warns(TargetWarning, match="convolutions: there is no operation 'HardSwich'"):
        parse_target(TOML + CONVOLUTIONS.replace("HardSwish", "HardSwich"), "chip.toml")
