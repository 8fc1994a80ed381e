from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from isobit.cli.quantizing.evaluation import Evaluator
from isobit.cli.quantizing.gains import gain_lines
from isobit.cli.quantizing.latency import Latency, Ratio, Tidied
from isobit.cli.quantizing.outcome import Outcome, outcome_sections, print_outcome
from isobit.data import Dataset
from isobit.graph import Graph, Node, TensorInfo

SCORES = np.eye(4, dtype=np.float32)


def evaluator(make_graph, labels=None, scores=SCORES, batch_size=3):
    dataset = Dataset(scores, make_graph(x=("n", *scores.shape[1:])), batch_size=batch_size)
    return Evaluator(dataset, labels, "y")


def same(batch):
    return {"y": batch["x"]}


def shifted(batch):
    """The classes of the first sample of each batch go wrong."""
    values = batch["x"].copy()
    values[0] = np.roll(values[0], 1)
    return {"y": values}


def test_accuracy_and_agreement(make_graph):
    comparison = evaluator(make_graph, np.array([0, 1, 2, 0]))
    comparison.compare(same, shifted)
    comparison.exported(same)
    result = comparison.result
    assert result.samples == 4
    assert (result.float_accuracy, result.simulated_accuracy, result.exported_accuracy) == (0.75, 0.75, 0.75)
    assert (result.simulated_agreement, result.exported_agreement) == (0.5, 1.0)


def test_labels_in_a_column_and_as_floats(make_graph):
    comparison = evaluator(make_graph, np.array([[0.0], [1.0], [2.0], [3.0]]))
    comparison.compare(same, same)
    assert comparison.result.float_accuracy == 1.0


def test_sqnr(make_graph):
    comparison = evaluator(make_graph)
    comparison.compare(same, lambda batch: {"y": batch["x"] * np.float32(1.125)})
    assert comparison.result.sqnr["y"] == pytest.approx(20 * math.log10(8))
    comparison = evaluator(make_graph)
    comparison.compare(same, same)
    assert comparison.result.sqnr["y"] == math.inf


def test_outputs_that_score_no_classes(make_graph):
    scores = np.ones((4, 2, 5, 5), np.float32)
    comparison = evaluator(make_graph, np.zeros(4, int), scores)
    comparison.compare(same, same)
    assert comparison.result.float_accuracy is None
    assert comparison.result.simulated_agreement is None
    assert comparison.result.notes == ["output 'y' has shape (samples, 2, 5, 5), which scores no classes: no top-1"]


def test_trailing_axes_of_one_are_no_obstacle(make_graph):
    comparison = evaluator(make_graph, np.arange(4), SCORES.reshape(4, 4, 1, 1))
    comparison.compare(same, same)
    assert comparison.result.float_accuracy == 1.0


def test_table_says_dashes_where_nothing_was_measured(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    outcome = Outcome("uint8 x int8", "default", "minmax", quantized_bytes=2_500_000)
    outcome.latency = Latency(None, 1.234, None, None, None, 4, 2, 9, "onnxruntime 1, CPU", "wall")
    print_outcome(outcome, as_json=False)
    text = capsys.readouterr().out
    assert "2.5 MB" in text
    assert "1.23 ms" in text
    assert "best of 9 interleaved rounds, batch 4, 2 thread(s), onnxruntime 1, CPU" in text
    assert "busy" not in text


def test_a_busy_machine_is_said(capsys):
    outcome = Outcome("uint8 x int8", "default", "minmax")
    outcome.latency = Latency(1.8, 0.9, 0.5, 0.4, 1.2, 4, 2, 9, "onnxruntime 1, CPU", "wall")
    print_outcome(outcome, as_json=False)
    assert "the rounds gave 0.40x to 1.20x, as on a busy machine" in capsys.readouterr().out
    outcome.latency = Latency(1.8, 0.9, 0.5, 0.45, 0.55, 4, 1, 9, "onnxruntime 1, CPU", "processor")
    print_outcome(outcome, as_json=False)
    text = capsys.readouterr().out
    assert "these are milliseconds of the processor" in text
    assert "the rounds gave" not in text


GIVEN = {"batch": 4, "threads": 1, "rounds": 9, "runtime": "onnxruntime 1, CPU", "clock": "wall"}


def test_tidying_is_told_from_integers(capsys):
    # The given file takes 4 ms, the same network as isobit writes it 1 ms, and in integers 1.2 ms.
    tidied = Tidied(1.0, Ratio(0.25, 0.24, 0.27), Ratio(1.2, 1.1, 1.3))
    outcome = Outcome("uint8 x int8", "default", "minmax")
    outcome.latency = Latency(4.0, 1.2, 0.3, 0.28, 0.33, **GIVEN, tidied=tidied)
    print_outcome(outcome, as_json=False)
    text = " ".join(capsys.readouterr().out.split())
    assert "of the 0.30x in latency, 0.25x is tidying" in text
    assert "takes 1 ms), and 1.20x are the integers" in text
    assert "integers do not pay" in text
    assert "--override '*=float'" in text
    assert "1.20x of its time as isobit writes it in float (1 ms)" in text
    assert "0.25x is tidying" in json.dumps([section.content for section in outcome_sections(outcome)], default=asdict)
    print_outcome(outcome, as_json=True)
    found = json.loads(capsys.readouterr().out)["latency"]["tidied"]
    assert found["tidying"] == {"best": 0.25, "low": 0.24, "high": 0.27}
    assert (found["float_ms"], found["integers"]["best"]) == (1.0, 1.2)


@pytest.mark.parametrize(
    ("ratio", "tidied", "expected"),
    [
        ((0.5, 0.4, 0.6), None, []),
        ((0.5, 0.4, 0.6), Tidied(2, Ratio(0.95, 0.9, 1.1), Ratio(0.52, 0.4, 0.6)), []),  # written as given
        ((0.5, 0.4, 0.6), Tidied(2, Ratio(0.8, 0.6, 1.1), Ratio(0.6, 0.4, 0.7)), []),  # within the spread
        ((0.5, 0.4, 0.6), Tidied(2, Ratio(0.8, 0.7, 0.9), Ratio(0.6, 0.4, 0.7)), ["is tidying"]),
        ((1.3, 1.2, 1.4), None, ["do not pay", "in float as given"]),
        ((1.3, 0.9, 1.4), None, []),  # within the spread
        ((1.02, 1.01, 1.03), None, []),  # next to nothing
        ((1.3, 1.2, 1.4), Tidied(2, Ratio(1.5, 1.4, 1.6), Ratio(0.9, 0.8, 1.1)), ["do not pay", "in float as given"]),
        ((None, None, None), Tidied(2, None, Ratio(1.3, 1.2, 1.4)), ["do not pay", "as isobit writes it in float"]),
        ((None, None, None), None, []),
    ],
)
def test_integers_that_do_not_pay_are_said(ratio, tidied, expected):
    latency = Latency(None if ratio[0] is None else 2.0, 1.0, *ratio, **GIVEN, tidied=tidied)
    lines = list(gain_lines(latency, None, None, None))
    assert len(lines) == bool(expected)
    assert all(text in line for line in lines for text in expected)


def test_a_file_that_is_no_smaller_is_said():
    assert list(gain_lines(None, 1000, 400, 1100)) == []
    (line,) = gain_lines(None, 1000, 2500, 8000)
    assert "no smaller than the given one (2.50x)" in line
    assert "8.00x in float" in line
    (line,) = gain_lines(None, 1000, 1500, 900)
    assert "nodes of quantizers take more" in line
    (line,) = gain_lines(None, 1000, 1500, None)
    assert "(1.50x)" in line
    assert "in float" not in line


def test_names_with_brackets_are_printed_as_they_are(capsys):
    outcome = Outcome("uint8 x int8", "default", "minmax", left_in_float={"[bold]x[/bold]": "why [0]"})
    print_outcome(outcome, as_json=False)
    assert "[bold]x[/bold]: why [0]" in capsys.readouterr().out


def test_json_has_no_infinity(capsys, make_graph):
    comparison = evaluator(make_graph)
    comparison.compare(same, same)
    print_outcome(Outcome("a x b", "default", "minmax", comparison.result), as_json=True)
    assert '"y": null' in capsys.readouterr().out


def test_figures_that_one_of_the_models_lacks_are_shown(capsys):
    outcome = Outcome("a x b", "default", "minmax")
    outcome.scores = {"float": {"boxes": 0.5, "masks": 0.25}, "simulated": {"boxes": 0.375, "classes": 0.75}}
    print_outcome(outcome, as_json=False)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if ", simulated" in line]
    assert [row[0] for row in rows] == ["boxes,", "masks,", "classes,"]
    assert [row[2:4] for row in rows] == [["0.5", "0.375"], ["0.25", "nan"], ["nan", "0.75"]]


def test_parts_of_an_output_that_is_put_together():
    """Scores that are lost beside large boxes, over two batches: against all of it at once."""
    parts = [Node(name, "Relu", (f"{name}_in",), (name,)) for name in ("boxes", "scores")]
    graph = Graph(
        (*parts, Node("join", "Concat", ("boxes", "scores"), ("y",), {"axis": 1})),
        ("boxes_in", "scores_in"),
        {"y": "y"},
        {f"{name}{end}": TensorInfo(("n", n)) for name, n in (("boxes", 4), ("scores", 6)) for end in ("", "_in")}
        | {"y": TensorInfo(("n", 10))},
        {},
    )
    rng = np.random.default_rng(0)
    data = {"boxes_in": 500 * rng.random((5, 4)), "scores_in": rng.random((5, 6))}
    data = {name: values.astype(np.float32) for name, values in data.items()}

    def exact(batch):
        return {"y": np.concatenate([batch["boxes_in"], batch["scores_in"]], axis=1)}

    def lost(batch):
        return {"y": np.concatenate([batch["boxes_in"] + 1, 0 * batch["scores_in"]], axis=1)}

    comparison = Evaluator(Dataset(data, graph, batch_size=3), None, "y")
    comparison.compare(exact, lost)
    boxes = 10 * math.log10(np.square(data["boxes_in"].astype(float)).sum() / 20)
    assert list(comparison.result.sqnr) == ["y", "y[scores]", "y[boxes]"]
    assert comparison.result.sqnr["y[scores]"] == pytest.approx(0)
    assert comparison.result.sqnr["y[boxes]"] == pytest.approx(boxes, abs=1e-3)
    assert comparison.result.sqnr["y"] > 40


def test_labels_of_several_outputs():
    """Each against a loop over its samples; the first that has labels is the output whose agreement is counted."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((7, 4)).astype(np.float32), rng.standard_normal((7, 3)).astype(np.float32)
    x = np.concatenate([first, second], axis=1)
    graph = Graph(
        (Node("a", "Slice", ("x",), ("one",), {}), Node("b", "Slice", ("x",), ("two",), {})),
        ("x",),
        {"one": "one", "two": "two"},
        {"x": TensorInfo(("n", 7)), "one": TensorInfo(("n", 4)), "two": TensorInfo(("n", 3))},
        {},
    )
    labels = {"one": rng.integers(0, 4, 7), "two": rng.integers(0, 3, 7)}

    def run(batch, factor=1):
        return {"one": factor * batch["x"][:, :4], "two": batch["x"][:, 4:]}

    expected = {
        name: sum(int(np.argmax(row)) == label for row, label in zip(scores, labels[name], strict=True)) / 7
        for name, scores in (("one", first), ("two", second))
    }
    comparison = Evaluator.of(Dataset(x, graph, batch_size=3), labels)
    assert comparison.accuracies(run) == expected
    comparison.compare(run, lambda batch: run(batch, -1))
    comparison.exported(run)
    result = comparison.result
    assert (result.output, result.float_accuracy, result.exported_accuracy) == ("one", expected["one"], expected["one"])
    of = result.further["two"]
    assert (of.exact, of.simulated, of.exported) == (expected["two"],) * 3
    only = Evaluator.of(Dataset(x, graph, batch_size=3), {"two": labels["two"]})
    assert only.accuracies(run) == {"two": expected["two"]}
    assert only.result.output == "two"
    assert Evaluator.of(Dataset(x, graph), {}).result.output == "one"
