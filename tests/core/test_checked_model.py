"""The checks of the contract that CheckedModel makes for every backend, and their messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy_backend import NumpyEngine, checked

from isobit.backend import Batch, CheckedModel, Differentiable
from isobit.edits import AddBias, Compensation, Draft, Edit, EditPlan, SetWeights
from isobit.encodings import Encoding
from isobit.errors import DataError, EditError, EncodingError, ModelError
from isobit.graph import Input, Take, Tensor, Weight
from isobit.graph_backend import DifferentiableGraphModel, GraphModel
from isobit.statistics import Request
from isobit.testing.collecting import Collect
from isobit.testing.networks import NETWORKS

NETWORK = NETWORKS["shared_weights"]()
BATCH = NETWORK.batch(2)


def model() -> CheckedModel:
    return checked(NETWORK.graph, NETWORK.weights)


def test_unknown_weights() -> None:
    with pytest.raises(ModelError, match=r"no weight 'fc1\.wait' in the graph \(did you mean 'fc1\.weight'\?\)"):
        model().weight("fc1.wait")


def test_an_adapter_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="holds no adapters, so it cannot use 'other'"):
        model().use_adapter("other")


def test_sites_to_quantize_and_to_switch() -> None:
    opened, encoding = model(), Encoding.of("int8", 0.1)
    for site, kind in ((Tensor("nothing"), "tensor"), (Weight("x"), "weight"), (Input("fc1", 7), "input")):
        with pytest.raises(EncodingError, match=f"the graph has no {kind} '.*' to quantize"):
            opened.set_quantizers({Tensor("x"): encoding, site: encoding})
    assert len(opened.encodings()) == 0, "all or none"
    opened.set_quantizers({Tensor("x"): encoding})
    with pytest.raises(EncodingError, match=r"'fc1\.weight' has no quantizer to switch"):
        opened.enable([Tensor("x"), Weight("fc1.weight")], on=False)
    assert isinstance(opened.inner, GraphModel)
    assert not opened.inner.off, "all or none"


def test_only_tensors_are_observed() -> None:
    for site in (Tensor("fc1.weight"), Tensor("nothing"), Input("fc1", 1), Input("nothing", 0)):
        with pytest.raises(EncodingError, match="only tensors have statistics"):
            model().observe([BATCH], [Request(site, Collect())])


class Noting(GraphModel):
    """Notes what reaches the backend."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.plans: list[EditPlan] = []
        self.batches: list[Batch] = []

    def apply(self, plan: EditPlan) -> None:
        self.plans.append(plan)
        super().apply(plan)

    def run(self, batch: Batch) -> dict[str, np.ndarray]:
        self.batches.append(batch)
        return super().run(batch)


def test_an_edit_is_planned_once_and_logged_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Noting(NumpyEngine(), NETWORK.graph, NETWORK.weights)
    opened, planned = CheckedModel.of(inner), []
    plan = Draft.plan
    monkeypatch.setattr(Draft, "plan", lambda draft: planned.append(draft) or plan(draft))
    edit = SetWeights({"fc1.weight": 2 * opened.weight("fc1.weight")})
    opened.edit([edit])
    assert (len(planned), len(inner.plans)) == (1, 1)
    with pytest.raises(EditError):
        opened.edit([edit, SetWeights({"nothing": np.ones(3)})])
    assert len(inner.plans) == 1
    assert opened.edit_log == [edit]
    copied = opened.copy()
    copied.edit([edit])
    assert (copied.edit_log, opened.edit_log) == ([edit, edit], [edit])
    assert CheckedModel.of(opened).edit_log == [], "what is opened anew has no edits"


def test_a_backend_gets_the_inputs_alone_in_their_types_and_no_copies() -> None:
    inner = Noting(NumpyEngine(), NETWORK.graph, NETWORK.weights)
    CheckedModel.of(inner).run({**BATCH, "label": np.ones(2)})
    CheckedModel.of(inner).run({name: value.astype(np.float64) for name, value in BATCH.items()})
    first, second = inner.batches
    assert set(first) == set(second) == set(BATCH)
    assert all(first[name] is value for name, value in BATCH.items())
    assert all(second[name].dtype == value.dtype for name, value in BATCH.items())


def test_batches_that_do_not_fit_are_named_and_other_errors_pass() -> None:
    opened = model()
    with pytest.raises(DataError, match=r"no array for input 'x' \(did you mean 'xx'\?\)"):
        opened.run({"xx": BATCH["x"]})
    wrong = {"x": np.ones((2, 7), np.float32)}
    message = r"the model failed on a batch of shapes \{'x': \(2, 7\)\}: matmul"
    with pytest.raises(ModelError, match=message):
        opened.run(wrong)
    collect, (output, tensor) = Collect(), next(iter(opened.graph.outputs.items()))
    with pytest.raises(ModelError, match=message):
        opened.observe([BATCH, wrong], [Request(Tensor(tensor), collect)])
    np.testing.assert_array_equal(collect.values, opened.run(BATCH)[output])

    def data() -> Iterator[Batch]:
        yield BATCH
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="^the disk is full$"):
        opened.observe(data(), [Request(Tensor("x"), Collect())])
    with pytest.raises(DataError, match="no array for input 'x'"):
        opened.observe([BATCH, {}], [Request(Tensor("x"), Collect())])


class Number(float):
    """A framework's own number."""

    shape, dtype = (), "float32"


class Descending(NumpyEngine):
    """An engine whose gradient is the weight itself."""

    def gradient(self, model: GraphModel, function: Any, weights: Any, feeds: Any) -> tuple[Any, Any]:
        self.run(model, feeds, ())
        return function({"y": Number(2)}), {name: value / (value != 7) for name, value in weights.items()}


def test_values_that_are_overridden_twice() -> None:
    """Two names of one native array, or of one part of it; two parts of it are apart."""
    info = NETWORK.graph.weights["fc1.weight"]
    whole, first, second = "fc1.weight", "first", "second"
    for layouts, clash in (
        ({whole: info.layout, first: info.layout}, (whole, first)),
        ({whole: info.layout, first: (Take(0), *info.layout)}, (whole, first)),
        ({first: (Take(0), *info.layout), second: (Take(1), *info.layout)}, None),
        ({first: (Take(1), *info.layout), second: (Take(1), *info.layout)}, (first, second)),
        ({first: (Take(1), Take(0), *info.layout), second: (Take(1), *info.layout)}, (first, second)),
        ({first: (Take(1), Take(0), *info.layout), second: (Take(0), *info.layout)}, None),
    ):
        infos = {name: replace(info, source="fc1", layout=layout) for name, layout in layouts.items()}
        graph = replace(NETWORK.graph, weights={**NETWORK.graph.weights, **infos})
        weight = NETWORK.weights[whole]
        opened = DifferentiableGraphModel(Descending(), graph, {**NETWORK.weights, **dict.fromkeys(infos, weight)})
        model = CheckedModel.of(opened)
        assert isinstance(model, Differentiable)
        overridden = dict.fromkeys(infos, weight)
        if clash is None:
            assert model.gradient(lambda outputs: outputs["y"], overridden, BATCH)[1].keys() == infos.keys()
            continue
        with pytest.raises(ModelError, match=f"'{clash[0]}' and '{clash[1]}' are the same parameter"):
            model.gradient(lambda outputs: outputs["y"], overridden, BATCH)


def test_what_gradients_are_asked_of() -> None:
    assert not isinstance(model(), Differentiable)
    opened = CheckedModel.of(DifferentiableGraphModel(Descending(), NETWORK.graph, NETWORK.weights))
    assert isinstance(opened, Differentiable)
    assert isinstance(opened.copy(), Differentiable)
    name = "fc1.weight"
    weight = opened.weight(name)
    value, gradients = opened.gradient(lambda outputs: outputs["y"], {name: weight}, BATCH)
    assert value == 2
    np.testing.assert_array_equal(gradients[name], weight)
    for wrong, message in (
        ({"fc1.wait": weight}, "no weight"),
        ({name: weight[:1]}, "has shape"),
        ({name: weight.astype(np.float64)}, "convert them to float32"),
        ({name: np.full_like(weight, np.inf)}, "overridden by NaN or infinity"),
    ):
        with pytest.raises((ModelError, DataError), match=message):
            opened.gradient(lambda outputs: outputs["y"], wrong, BATCH)
    for result, message in (
        (1.0, "must return one real number as the framework's own tensor, not 1.0"),
        (np.float32(1), "must return one real number"),
        (Number("nan"), "the function of the outputs is nan"),
    ):
        with pytest.raises((ModelError, DataError), match=message):
            opened.gradient(lambda outputs, result=result: result, {name: weight}, BATCH)
    with np.errstate(divide="ignore"), pytest.raises(DataError, match=r"gradient by weight 'fc1\.weight' holds NaN"):
        opened.gradient(lambda outputs: outputs["y"], {name: np.full_like(weight, 7)}, BATCH)

    def broken(outputs: Any) -> Any:
        raise ValueError("of the function")

    with pytest.raises(ValueError, match="^of the function$"):
        opened.gradient(broken, {name: weight}, BATCH)
    with pytest.raises(ModelError, match="failed on a batch of shapes"):
        opened.gradient(lambda outputs: outputs["y"], {name: weight}, {"x": np.ones((2, 7))})


def test_a_draft_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a technique built step by step is not built again; a draft of another state of the model is."""
    opened, name = model(), "fc1.bias"
    applied: list[Edit] = []
    apply = Draft.apply

    def counted(draft: Draft, edit: Edit) -> None:
        applied.append(edit)
        apply(draft, edit)

    draft, late = (Draft(opened.graph, opened.weight) for _ in range(2))
    for each in (draft, late):
        each.apply(SetWeights({name: 2 * opened.weight(name)}))
    doubled = 2 * opened.weight(name)
    monkeypatch.setattr(Draft, "apply", counted)
    opened.edit(draft)
    assert not applied
    assert opened.edit_log == draft.edits
    np.testing.assert_array_equal(opened.weight(name), doubled)
    opened.edit(late)
    assert applied == late.edits
    np.testing.assert_array_equal(opened.weight(name), doubled)


def test_what_compensates_for_quantization_is_not_of_the_float_model() -> None:
    """A bias that was corrected, and one that was added, are as they were in the float model."""
    network = NETWORKS["conv_net"]()
    opened, batch = checked(network.graph, network.weights), network.batch(2)
    bias, before = opened.weight("fc.bias"), opened.run(batch)
    channels = opened.weight(str(network.graph.node("conv1").inputs[1])).shape[0]
    opened.edit([SetWeights({"fc.bias": bias + 1}, compensates=True)])
    opened.edit([SetWeights({"fc.bias": bias + 3}, compensates=True)])
    opened.edit([AddBias("conv1", np.full(channels, 2.0, np.float32), compensates=True)])
    assert any(not np.array_equal(values, before[name]) for name, values in opened.run(batch).items())
    for name, values in opened.uncompensated().run(batch).items():
        np.testing.assert_array_equal(values, before[name])
    copied = opened.copy()
    opened.edit([SetWeights({"fc.bias": bias + 5})])
    assert "fc.bias" not in opened.compensations, "that is the value of the float model from now on"
    np.testing.assert_array_equal(opened.uncompensated().weight("fc.bias"), bias + 5)
    copied.take_back()
    assert not copied.compensations
    np.testing.assert_array_equal(copied.weight("fc.bias"), bias)


def test_training_after_a_compensation_is_of_the_float_model_too() -> None:
    done = Compensation(np.float32([1, 2]), np.float32([1.5, 2]))
    np.testing.assert_array_equal(done.without(np.float32([1.5, 2])), [1, 2])
    np.testing.assert_array_equal(done.without(np.float32([1.75, 2.25])), [1.25, 2.25])
