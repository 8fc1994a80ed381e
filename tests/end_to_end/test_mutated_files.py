"""Mutated files are opened, or refused with an IsobitError, in little time and memory."""

from __future__ import annotations

import errno
import os
import resource
import signal
import tempfile
import zipfile
from copy import deepcopy
from functools import partial
from random import Random

import numpy as np
import onnx
import pytest
from mutated_files import damage_text
from mutated_files.cases import cases
from mutated_files.doors import Doors
from mutated_files.run_cases import prepare, run_cases
from mutated_files.seeds import write_seeds

import isobit
from isobit.errors import DataError, EncodingError, ModelError, OutputError, RecipeError, TargetError
from isobit.files import temporary_folder
from isobit.quantsim import read_encodings
from isobit.statistics import Histogram, Statistics
from isobit.statistics.run_sums import RunSums
from isobit.testing.networks import NETWORKS
from isobit_onnx.reference_networks import build_onnx


def test_a_share_of_the_mutated_files(tmp_path):
    """`python -m mutated_files` opens 4,000 of them; these are others, so that the share adds to them."""
    prepare(tmp_path / "seeds")
    outcomes = run_cases(cases(150, start=10_000), tmp_path / "seeds", tmp_path / "scratch")
    bad = [outcome for outcome in outcomes if not outcome.is_good]
    assert not bad, "\n".join(map(str, bad))
    assert {outcome.outcome for outcome in outcomes} == {"opened", "refused"}


def test_the_files_are_valid_before_they_are_mutated(tmp_path):
    seeds = write_seeds(tmp_path)
    doors = Doors(tmp_path)
    for kind, paths in seeds.items():
        for path in paths:
            if path.stem not in ("external", "plain"):  # opened below; without what CorrectBias observes
                doors.open(kind, path)
    isobit.QuantSim(tmp_path / "external.onnx")


def _first(model):
    return next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)


def _short(tensor):
    tensor.raw_data = tensor.raw_data[:-4]


def _long(tensor):
    tensor.raw_data += b"\0"


def _without(tensor):
    tensor.ClearField("raw_data")


def _negative(tensor):
    tensor.dims[0] = -8


def _huge(tensor):
    tensor.dims[0] = 2**40


def _type(data_type, tensor):
    tensor.data_type = data_type


def _external(tensor, **entries):
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize(
    "change",
    [
        _short, _long, _without, _negative, _huge,
        *(partial(_type, kind) for kind in (0, 8, 11, 14, 99)),
        *(partial(_external, location=place) for place in ("", "a\0b", "n" * 5000, "none.bin", "/dev/zero", "..")),
        partial(_external, location="other.bin", offset="-1"),
        partial(_external, location="other.bin", offset=str(2**62)),
        partial(_external, location="other.bin", length="1"),
        partial(_external, location="other.bin", offset="three"),
    ],
)  # fmt: skip
def test_constants_whose_data_do_not_fit(change, tmp_path):
    """One check serves the float model and the QDQ model."""
    network = NETWORKS["conv_net"]()
    model = build_onnx(network)
    isobit.quantize(model, [network.batch(2)]).export(tmp_path)
    (tmp_path / "other.bin").write_bytes(bytes(10_000))
    quantized = onnx.load(tmp_path / "model.qdq.onnx")
    for proto in (model, quantized):
        change(_first(proto))
        (tmp_path / "changed.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError if proto is model else EncodingError, match=r"changed\.onnx"):
            isobit.QuantSim(tmp_path / "changed.onnx") if proto is model else read_encodings(tmp_path / "changed.onnx")


def _sequence(model):
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_sequence_value_info("image", 1, None))


def _element(kind, model):
    model.graph.input[0].type.tensor_type.elem_type = kind


def _groups(number, model):
    node = next(node for node in model.graph.node if node.op_type == "ConvTranspose")
    next(attribute for attribute in node.attribute if attribute.name == "group").i = number


def _norm(model):
    node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    node.input[2] = next(t.name for t in model.graph.initializer if len(t.dims) == 1 and t.name not in node.input)
    next(t for t in model.graph.initializer if t.name == node.input[2]).CopyFrom(
        onnx.numpy_helper.from_array(np.ones(5, np.float32), node.input[2])
    )


def _attribute(model):
    """One that onnxruntime ignores, with a name that the neutral graph has for something else."""
    node = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    node.attribute.append(onnx.helper.make_attribute("axes", 1e-5))


def test_attributes_that_an_operation_does_not_have_mean_nothing():
    network = NETWORKS["multi_head"]()
    model, batch = build_onnx(network), network.batch(2)
    expected = isobit.QuantSim(model)
    _attribute(model)
    changed = isobit.QuantSim(model)
    assert changed.graph.tensors == expected.graph.tensors
    assert [dict(n.attributes) for n in changed.graph.nodes] == [dict(n.attributes) for n in expected.graph.nodes]
    for name, array in expected.run_float(batch).items():
        np.testing.assert_array_equal(changed.run_float(batch)[name], array)


@pytest.mark.parametrize("index", [1, 3])
def test_operands_of_recurrent_layers_that_do_not_fit(index, tmp_path):
    """onnxruntime loads such a file: it looks at these sizes when it runs."""
    network = NETWORKS["recurrent"]()
    model = build_onnx(network)
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    wrong = np.zeros((1, 21) if index == 3 else (1, 21, 6), np.float32)
    while len(node.input) <= index:
        node.input.append("")
    node.input[index] = "wrong"
    model.graph.initializer.append(onnx.numpy_helper.from_array(wrong, "wrong"))
    (tmp_path / "changed.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"LSTM.*'wrong' has \d+ numbers; its dims are"):
        isobit.QuantSim(tmp_path / "changed.onnx")


@pytest.mark.parametrize(
    ("op", "constants"),
    [("Slice", (np.int64(0), np.array([1]))), ("Clip", (np.zeros(1, np.float32), np.ones(8, np.float32)))],
)
def test_settings_of_another_rank_than_theirs(op, constants, tmp_path):
    """onnxruntime loads both, and says what is wrong when it runs."""
    names = [f"c{index}" for index in range(len(constants))]
    nodes = [
        onnx.helper.make_node(op, ["x", *names], ["s"], "node"),
        onnx.helper.make_node("MatMul", ["s", "w"], ["y"], "product"),
    ]
    weights = [onnx.numpy_helper.from_array(np.asarray(c), name) for c, name in zip(constants, names, strict=True)]
    weights.append(onnx.numpy_helper.from_array(np.ones((8, 8), np.float32), "w"))
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 8])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(nodes, "graph", [x], [y], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(isobit.IsobitError):
        isobit.quantize(model, [{"x": np.ones((2, 8), np.float32)}]).export(tmp_path)


def test_damage_leaves_what_other_files_get_as_it_is():
    """Else a file would depend on those before it, and could come to hold itself."""
    before = deepcopy(damage_text._VALUES)
    for number in range(3000):
        damage_text.damage_json('{"a": [1, {"b": [2]}], "c": {}}', Random(number))
    assert repr(damage_text._VALUES) == repr(before)


def _undefined(model):
    tensor = onnx.TensorProto(name="odd", dims=[1])
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["odd"], value=tensor))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_sequence, "the input 'image' is a sequence"),
        *((partial(_element, kind), r"image.*(no arrays|not a valid|not supported|unknown)") for kind in (18, 23, 0)),
        *((partial(_groups, number), "do not make|not a valid ONNX model") for number in (-2, 0, 3)),
        (_norm, "its constant .* has dims"),
        (_undefined, "odd"),
    ],
)
def test_what_a_model_declares_must_have_a_meaning(change, said, tmp_path):
    model = build_onnx(NETWORKS["upsampler" if getattr(change, "func", None) is _groups else "conv_net"]())
    change(model)
    (tmp_path / "changed.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=said):
        isobit.QuantSim(tmp_path / "changed.onnx")


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_that_no_array_has_are_unknown(size, tmp_path):
    network = NETWORKS["conv_net"]()
    model = build_onnx(network)
    batch = network.batch(2)
    expected = isobit.quantize(model, [batch]).run(batch)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = size
    outputs = isobit.quantize(model, [batch]).run(batch)
    for name, array in expected.items():
        np.testing.assert_array_equal(outputs[name], array)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("totals", np.array([-1, 0, 100])),
        ("totals", np.array([4, -2, 100])),
        ("counts", np.array([-1])),
        ("counts", np.array([2**40])),
        ("counts", np.zeros(0, np.int64)),
        ("bounds", np.array([np.nan, 1.0])),
        ("bounds", np.array([np.inf, -np.inf])),
    ],
)
def test_statistics_that_do_not_add_up(name, value):
    histogram = Histogram()
    histogram.update(np.ones((1, 4), np.float32))
    arrays = {**histogram.arrays(), name: value}
    if name == "counts":
        arrays["keys"] = arrays["keys"][: value.size]
    with pytest.raises(DataError, match="counts"):
        Histogram.from_arrays(arrays)


@pytest.mark.parametrize(("closed", "batches"), [(np.zeros(3), 1), (np.zeros((2, 1)), 1), (np.zeros(2), -1)])
def test_sums_that_do_not_add_up(closed, batches):
    with pytest.raises(DataError, match="do not add up"):
        RunSums.from_arrays({"closed": closed, "open": np.zeros(2), "open_batches": np.array([batches])})


def test_archives_that_unpack_to_far_more_than_they_are(tmp_path):
    path = tmp_path / "large.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("header.npy", bytes(200 << 20))
        archive.writestr("manifest.json", bytes(1))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"large\.npz.*unpack to 209715201 bytes"):
        Statistics.load(path)
    with pytest.raises(ModelError, match=r"large\.npz.*unpack to"):
        isobit.load(path, build_onnx(NETWORKS["conv_net"]()))


@pytest.mark.parametrize("text", ["x = " + "[" * 3000, "x = " + "9" * 5000])
def test_toml_that_its_parser_cannot_take(text, tmp_path):
    path = tmp_path / "file.toml"
    path.write_text(text)
    model = build_onnx(NETWORKS["conv_net"]())
    with pytest.raises(TargetError, match="not valid TOML"):
        isobit.QuantSim(model, target=path)
    with pytest.raises(RecipeError, match="not valid TOML"):
        isobit.quantize(model, [NETWORKS["conv_net"]().batch(1)], recipe=path)


def test_names_that_no_file_can_have(tmp_path):
    model = build_onnx(NETWORKS["conv_net"]())
    sim = isobit.quantize(model, [NETWORKS["conv_net"]().batch(1)])
    for name in ("a\0b", "n" * 5000):
        for call in (
            lambda name=name: isobit.QuantSim(f"{name}.onnx"),
            lambda name=name: isobit.QuantSim(model, target=f"{name}.toml"),
            lambda name=name: isobit.quantize(model, [], recipe=f"{name}.toml"),
            lambda name=name: isobit.load(name, model),
            lambda name=name: read_encodings(tmp_path / name),
            lambda name=name: read_encodings(tmp_path / f"{name}.onnx", format="onnx-qdq"),
            lambda name=name: Statistics.load(name),
            lambda name=name: sim.save(tmp_path / name),
            lambda name=name: sim.save_statistics(tmp_path / name),
            lambda name=name: sim.export(tmp_path / name),
        ):
            with pytest.raises(isobit.IsobitError):
                call()


def test_links_stay_and_pipes_are_not_replaced(tmp_path):
    sim = isobit.quantize(build_onnx(NETWORKS["conv_net"]()), [NETWORKS["conv_net"]().batch(1)])
    (tmp_path / "link").symlink_to(tmp_path / "file")
    sim.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").is_file()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe"):
        sim.save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_temporary_files_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(OutputError, match="set TMPDIR"), temporary_folder():
        pass
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OutputError, match="No space left.*set TMPDIR"), temporary_folder():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), temporary_folder():  # not of the place
        raise FileNotFoundError(errno.ENOENT, "no such file")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="the system does not limit the size of files")
def test_a_disk_that_is_full_leaves_what_was_there(tmp_path):
    """The limit of the size of files stands for the disk: the system refuses to write in the same call."""
    network = NETWORKS["conv_net"]()
    sim = isobit.quantize(build_onnx(network), [network.batch(1)])
    sim.export(tmp_path / "out")
    sim.save(tmp_path / "saved.isobit")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for size in (100, 3000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
            for call in (lambda: sim.export(tmp_path / "out"), lambda: sim.save(tmp_path / "saved.isobit")):
                with pytest.raises(OutputError, match="too large|cannot write"):
                    call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
