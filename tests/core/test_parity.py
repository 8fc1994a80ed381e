"""Comparing what two frameworks found: each difference is counted, and a broken promise is one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from isobit.encodings import Encoding, Encodings
from isobit.graph import Site, Tensor, Weight
from isobit.placement import place
from isobit.plugins import registry
from isobit.testing.networks import NETWORKS
from isobit.testing.parity import command
from isobit.testing.parity.comparing import Agreement, agreement, broken_promises, compare, decibels
from isobit.testing.parity.results import Result, placement_facts
from isobit.testing.parity.table import as_markdown


def result(**changes: Encoding) -> Result:
    """Of a small network, with one encoding for each site; `changes` by name."""
    network = NETWORKS["shared_weights"]()
    plan = place(network.graph, registry().target("default"))
    encodings: dict[Site, Encoding] = {}
    for site, placement in plan.placements.items():
        if placement.kind == "activation":
            encodings[site] = Encoding.of("uint8", 0.5, 3)
        elif placement.kind == "weight":
            size = network.weights[str(site)].shape[0]
            encodings[site] = Encoding.of("int8 per-channel", np.full(size, 0.25), np.zeros(size, np.int32), 0)
    encodings.update(
        {(Weight if name.endswith("weight") else Tensor)(name.replace("_", ".")): e for name, e in changes.items()}
    )
    by_scheme = {"minmax": Encodings(encodings), "mse": Encodings(encodings)}
    plans = {
        name: placement_facts(place(network.graph, registry().target(name))) for name in ("default", "onnxruntime-cpu")
    }
    outputs = {"y": np.arange(8, dtype=np.float32).reshape(2, 4)}
    return Result(network.graph, network.weights, plans, by_scheme, outputs, {"y": outputs["y"] + 0.1})


def test_equal_results_have_no_differences() -> None:
    comparison = compare("n", "folded", "torch", result(), result())
    assert not comparison.differences
    assert not comparison.broken
    assert comparison.activations["minmax"].equal == comparison.activations["minmax"].total > 4
    assert (comparison.weights.equal, comparison.weights.total) == (2, 2)
    assert "none" in as_markdown(["onnx", "torch"], [comparison], broken_promises([comparison]))


STEP = 0.5 / 2048


@pytest.mark.parametrize(
    ("scale", "zero_point", "scheme", "verdict"),
    [
        (0.5 + STEP, 3, "minmax", "near"),
        (0.5, 4, "minmax", "near"),
        (0.5 + 2.5 * STEP, 3, "minmax", "far"),
        (0.5, 5, "minmax", "far"),
        (0.5 * (1 + 1 / 128), 3, "mse", "near"),
        (0.5 * (1 + 1 / 16), 3, "mse", "far"),
    ],
)
def test_how_far_encodings_may_be_apart(scale: float, zero_point: int, scheme: str, verdict: str) -> None:
    comparison = compare("n", "folded", "torch", result(), result(x=Encoding.of("uint8", scale, zero_point)))
    assert getattr(comparison.activations[scheme], verdict) == 1
    assert (f"{scheme} encodings" in comparison.broken) == (verdict == "far")
    assert any(text.startswith(f"{scheme}: x: ") for text in comparison.differences)


def test_a_weight_may_not_differ_at_all() -> None:
    size = 8
    scale = np.full(size, 0.25, np.float32)
    scale[2] = np.nextafter(scale[2], np.float32(1))
    differing = Encoding.of("int8 per-channel", scale, np.zeros(size, np.int32), 0)
    comparison = compare("n", "folded", "torch", result(), result(fc1_weight=differing))
    assert "weight encodings" in comparison.broken
    assert broken_promises([comparison])


def test_the_share_of_equal_encodings_is_one_of_all_together() -> None:
    near = compare("n", "folded", "torch", result(), result(x=Encoding.of("uint8", 0.5, 4)))
    assert not near.broken
    assert [text for text in broken_promises([near]) if text.startswith("minmax: ")]
    equal = compare("n", "folded", "torch", result(), result())
    assert not broken_promises([near, *[equal] * 60])


def test_other_graphs_and_plans_are_counted() -> None:
    network = NETWORKS["two_inputs"]()
    reference = result()
    strange = replace(reference, graph=network.graph, weights=network.weights)
    assert "graph" in compare("n", "folded", "torch", reference, strange).broken
    plans = {**reference.plans, "default": {s: v for s, v in reference.plans["default"].items() if s != Tensor("x")}}
    comparison = compare("n", "folded", "torch", reference, replace(reference, plans=plans))
    assert comparison.plans == {"default": 1, "onnxruntime-cpu": 0}
    assert "plan for default" in comparison.broken


def test_agreement_of_outputs() -> None:
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((200, 10)).astype(np.float32)
    simulated = signal + 0.1 * rng.standard_normal(signal.shape).astype(np.float32)
    close = simulated + 0.001 * rng.standard_normal(signal.shape).astype(np.float32)
    assert agreement(signal, simulated, close).kept
    assert agreement(signal, simulated, close).margin_db == pytest.approx(40, abs=1)
    far = agreement(signal, simulated, signal)
    assert not far.kept
    assert far.top1 < 0.995
    assert Agreement(10.0, 20.0, 1.0).kept  # equal choices are enough
    assert decibels(signal, signal) == 200


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    original = result()
    original.write(tmp_path, "shared_weights", "as built")
    loaded = Result.read(tmp_path, "shared_weights", "as built")
    assert not compare("n", "as built", "torch", original, loaded).differences
    np.testing.assert_array_equal(loaded.outputs["y"], original.outputs["y"])
    assert loaded.plans == {name: dict(plan) for name, plan in original.plans.items()}


@pytest.mark.parametrize("broken", [False, True])
def test_the_command_leaves_with_what_it_found(broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_result = result(x=Encoding.of("uint8", 0.7, 3)) if broken else result()
    comparisons = [compare("shared_weights", "folded", "torch", result(), other_result)]
    monkeypatch.setattr(command, "_interpreters", lambda pairs, only: {"onnx": "python", "torch": "python"})
    monkeypatch.setattr(command, "_run", lambda interpreters, networks, folder: comparisons)
    paths = tmp_path / "p.json", tmp_path / "p.md"
    outcome = CliRunner().invoke(command.app, ["parity", "--json", str(paths[0]), "--markdown", str(paths[1])])
    assert outcome.exit_code == int(broken)
    assert ("broken: shared_weights (folded) in torch: minmax encodings" in outcome.stdout) == broken
    data = json.loads(paths[0].read_text("utf-8"))
    assert bool(data["broken"]) == broken
    assert len(data["comparisons"][0]["differences"]) == 2 * broken  # one for each scheme
    assert "| shared_weights | folded | equal |" in paths[1].read_text("utf-8")


def test_parity_of_one_framework_is_none() -> None:
    outcome = CliRunner().invoke(command.app, ["parity", "--backend", "nothing"])
    assert outcome.exit_code == 1
    assert "--backend nothing: those that build the reference networks are" in " ".join(outcome.stderr.split())
