"""`isobit.auto_quantize`: what it tries and returns, its journal, and measures that say nothing."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial, wraps
from pathlib import Path

import numpy as np
import pytest
from auto_killed import DATA, EXACT, found_with
from numpy_backend import NumpyBackend
from technique_networks import chain, simulator

import isobit
from isobit.data import Dataset
from isobit.errors import DataError, EvaluateError, FormatError, ModelError
from isobit.plugins import registry
from isobit.quantsim.judging.evaluate import identity_of
from isobit.quantsim.kept_simulator import restored
from isobit.search import attempts
from isobit.search.held_back import divide
from isobit.search.journal import Journal
from isobit.search.scoring import Score
from isobit.techniques.rounding import procedure

HEADER = dict.fromkeys(("isobit", "model", "data", "target", "settings", "evaluate"), "a")


def _data(batches: int = 4) -> list:
    return [chain(0, spread=0.0).batch(8, seed) for seed in range(batches)]


def error(model) -> float:
    return -float(np.abs(model(DATA)["logits"] - EXACT).max())


def test_the_first_that_holds() -> None:
    sim = simulator(chain(0, spread=0.0))
    best = []
    found = isobit.auto_quantize(sim, _data(), progress=False, on_best=lambda sim, attempt: best.append(attempt.name))
    assert found.holds
    assert [attempt.name for attempt in found.attempts] == best == ["fast"]
    assert found.measured_on == "agreement with the float model, 8 samples held back from calibration"
    assert found.chosen.drop <= 0.01
    assert "fast holds a drop of 0.01" in str(found)
    assert sim.calibration is None  # it stays as it is


def test_formats_where_no_recipe_holds() -> None:
    """Each attempt says why it was made; what is returned is what was measured."""
    sim = simulator(chain(0, spread=0.0), weights="int4", activations="uint4")
    drop = 0.02 * float(np.abs(EXACT).max())
    found = isobit.auto_quantize(sim, _data(2), error, max_drop=drop, progress=False)
    assert found.holds
    names = [attempt.name for attempt in found.attempts]
    assert names[:2] == ["fast", "ptq"]
    assert found.chosen.name.endswith("mixed precision")
    assert all(attempt.why and attempt.outcome == "does not hold" for attempt in found.attempts[:-1])
    assert found.chosen.score == -float(np.abs(found.sim.run(DATA)["logits"] - EXACT).max())
    assert found.mixed is not None
    assert "int8" in found.mixed.chosen.formats.values()
    assert json.loads(found.to_json())["chosen"]["name"] == found.chosen.name


def test_the_best_where_nothing_holds() -> None:
    sim = simulator(chain(0, spread=0.0), weights="int4", activations="uint4")
    found = isobit.auto_quantize(
        sim, _data(2), error, max_drop=0.0, candidates=["int4", "int5"], evaluations=3, progress=False
    )
    assert not found.holds
    assert found.why.startswith("nothing that was tried holds a drop of 0; the best is ")
    assert found.chosen.score == max(attempt.score for attempt in found.attempts)
    assert found.chosen.score == error(lambda batch: found.sim.run(batch))


def test_the_time_is_over() -> None:
    """The first attempt is made in any case."""
    sim = simulator(chain(0, spread=0.0), weights="int4", activations="uint4")
    found = isobit.auto_quantize(sim, _data(2), error, max_drop=0.0, minutes=1e-9, progress=False)
    assert [attempt.name for attempt in found.attempts] == ["fast"]
    assert found.why.startswith("the time is over")
    assert found.sim.encodings


def test_an_attempt_is_cut_off_at_its_next_layer(monkeypatch) -> None:
    """The time is over while layers are rounded: they are not all waited for, and the attempts before it count."""
    clock, solved = iter(itertools.count()), []
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)) if solved else 0.0)
    rounding = procedure.output_error

    def slow(*args, **settings):
        solved.append(1)
        next(itertools.islice(clock, 1000, None))
        return rounding(*args, **settings)

    monkeypatch.setattr(procedure, "output_error", slow)
    sim = simulator(chain(0, spread=0.0), weights="int4", activations="uint4")
    found = isobit.auto_quantize(sim, _data(2), error, max_drop=0.0, minutes=1.0, progress=False)
    assert len(solved) == 1
    assert [attempt.name for attempt in found.attempts] == ["fast"]
    assert found.why.startswith("the time is over")
    assert any("cut off" in note for note in found.notes)


def test_what_an_attempt_made_is_kept_beside_the_journal(tmp_path, monkeypatch) -> None:
    """A run that goes on neither observes nor rounds anew, also for a recipe that holds samples back; all is alike."""
    batches = [chain(0, spread=0.0).batch(16, seed) for seed in range(4)]
    figures = iter([0.0, 0.0, -1.0, 0.0])  # float twice, fast, ptq
    made: list[str] = []
    quantize = attempts.quantize
    monkeypatch.setattr(
        attempts, "quantize", lambda *args, **more: made.append(more["recipe"]) or quantize(*args, **more)
    )

    def found():
        sim = simulator(chain(0, spread=0.0), weights="int4")
        journal = tmp_path / "j.jsonl"
        return isobit.auto_quantize(sim, batches, lambda model: next(figures), max_drop=0.5, journal=journal)

    first, again = found(), found()
    assert made == ["fast", "ptq"]
    kept = sorted(".".join(path.name.split(".")[-2:]) for path in tmp_path.iterdir())
    assert kept == ["fast.sim", "j.jsonl", "ptq.sim"]
    assert again.to_dict() == first.to_dict()
    assert str(again.sim.report) == str(first.sim.report)
    assert again.sim.encodings == first.sim.encodings
    for name in first.sim.graph.weights:
        np.testing.assert_array_equal(again.sim.backend_model.weight(name), first.sim.backend_model.weight(name))
    file = next(tmp_path.glob("*.ptq.sim"))
    other = simulator(chain(0, middle="", spread=0.0)).simulation
    assert restored(other, file, Dataset(batches, other.graph)) is None  # its edits and grids are of another model
    file.write_bytes(file.read_bytes()[:-100])
    assert restored(first.sim.simulation, file, Dataset(batches, first.sim.graph)) is None  # damaged: it is made again


def test_a_noisy_measure() -> None:
    """Its noise is measured, and the drop holds with its margin."""
    noise = itertools.cycle([0.0, 0.02, -0.01, 0.01, 0.005])
    sim = simulator(chain(0, spread=0.0))
    found = isobit.auto_quantize(sim, _data(2), lambda model: 1 + next(noise), max_drop=0.2, progress=False)
    assert found.holds
    assert 0.005 < found.chosen.margin < 0.05
    assert "which differs by" in found.measured_on
    strict = isobit.auto_quantize(sim, _data(2), lambda model: 1 + next(noise), max_drop=0.001, minutes=1e-9)
    assert not strict.holds


class _Ends:
    """Ends the process, or the run."""

    def __init__(self, end) -> None:
        self.end = end

    def __call__(self, model) -> float:
        return self.end(3)


def test_a_measure_that_ends_its_process(monkeypatch) -> None:
    """It is said to: nothing ends in silence, and what a pool raises is explained."""
    with pytest.raises(EvaluateError, match="failed with SystemExit: 3"):
        isobit.auto_quantize(simulator(chain(0, spread=0.0)), _data(2), _Ends(sys.exit))
    made = []

    class Dies(ThreadPoolExecutor):
        def submit(self, *args):
            raise BrokenProcessPool("a process was terminated abruptly")

    def pool():
        made.append(Dies(1))
        return made[-1]

    monkeypatch.setattr(type(registry()), "backend_for", lambda self, model: NumpyBackend())
    with pytest.raises(EvaluateError, match="a worker of the executor died"):
        isobit.auto_quantize(simulator(chain(0, spread=0.0)), _data(2), error, executor=pool)
    assert len(made) == 2
    with pytest.raises(EvaluateError, match="a worker of the executor died"):
        isobit.auto_quantize(simulator(chain(0, spread=0.0)), _data(2), error, executor=pool())


def test_figures_that_are_none_are_failures() -> None:
    """Of the float model it has one, and none of what is quantized: said of each attempt, and one is returned."""
    figures = iter([1.0, 1.0])
    sim = simulator(chain(0, spread=0.0), weights="int4")
    found = isobit.auto_quantize(sim, _data(2), lambda model: next(figures, float("nan")), evaluations=2)
    assert not found.holds
    assert {attempt.outcome for attempt in found.attempts} == {"failed"}
    assert {attempt.score for attempt in found.attempts} == {None}
    assert found.why.endswith("the best is fast: it failed: evaluate returned nan")
    assert found.sim.encodings


def _one(model) -> float:
    return 1.0


def _two(model) -> float:
    return 2.0


def _best_of(model, count=3) -> float:
    return float(count)


def _passed_on(function):
    @wraps(function, assigned=())
    def run(model):
        return function(model)

    return run


def test_which_measure_it_is() -> None:
    """By what it does, not by its name; the same in another process."""
    assert identity_of(_one) != identity_of(_two).replace("_two", "_one")
    assert identity_of(_one) == identity_of(_one)
    assert identity_of(partial(_one)) != identity_of(partial(_two))
    texts = [identity_of(eval(f"lambda model: float(model in {{'a', 'b', 'c', {end!r}}})")) for end in ("d", "d", "e")]
    assert texts[0] == texts[1] != texts[2]
    assert identity_of(len) == "len"
    texts = {identity_of(partial(_best_of, count=count)) for count in (1, 2)} | {identity_of(_best_of)}
    assert len(texts) == 3
    assert identity_of(partial(_best_of, count=object())) == identity_of(partial(_best_of, count=object()))
    assert identity_of(_passed_on(_one)) != identity_of(_passed_on(_two))


def test_an_executor_gives_the_same(monkeypatch) -> None:
    monkeypatch.setattr(type(registry()), "backend_for", lambda self, model: NumpyBackend())
    sim = simulator(chain(0, spread=0.0), weights="int4", activations="uint4")
    sim.calibrate(_data(2))
    settings = {"max_drop": 0.02 * float(np.abs(EXACT).max()), "evaluations": 6}
    here = isobit.mixed_precision(sim, _data(2), evaluate=error, **settings)
    there = isobit.mixed_precision(sim, _data(2), evaluate=error, executor=lambda: ThreadPoolExecutor(2), **settings)
    assert there.to_dict() == here.to_dict()
    assert there.sim.encodings == here.sim.encodings


@pytest.mark.parametrize(
    ("evaluate", "settings", "kind", "message"),
    [
        (lambda model: float("nan"), {}, EvaluateError, "returned nan for the float model"),
        (lambda: 1.0, {}, EvaluateError, "takes no model"),
        (lambda model: "good", {}, EvaluateError, "returned 'good'"),
        (lambda model: 1.0, {"executor": ProcessPoolExecutor}, EvaluateError, "cannot be sent to the workers"),
        (None, {"candidates": ["int8"]}, FormatError, "two formats at least"),
        (None, {"candidates": ["int8", "float16"], "target": "onnxruntime-cpu"}, FormatError, "cannot run"),
        (None, {"cost": "bit"}, FormatError, "unknown cost"),
        (None, {"max_drop": -1.0}, FormatError, "a number from 0"),
        (None, {"minutes": 0}, FormatError, "above 0"),
        (None, {"weights": "int4"}, ModelError, "has its settings already: leave out weights"),
    ],
)
def test_what_is_refused_before_the_work(evaluate, settings, kind, message) -> None:
    sim = simulator(chain(0, spread=0.0), settings.pop("target", "default"))
    with pytest.raises(kind, match=message):
        isobit.auto_quantize(sim, _data(2), evaluate, **settings)


def test_an_iterator_serves_once() -> None:
    with pytest.raises(DataError, match="goes through the data many times"):
        isobit.auto_quantize(simulator(chain(0, spread=0.0)), iter(_data()))


def test_what_is_held_back() -> None:
    """Every fourth batch; whole arrays are cut so that there is one; of one batch that cannot be cut none is."""
    graph = chain(0, spread=0.0).graph
    settings = {"hold_back": True, "batch_size": 32, "inputs": None, "ignore_non_finite": False}
    parts = divide(_data(9), graph, **settings)
    assert (len(parts.calibration), len(parts.judged), parts.samples) == (7, 2, 16)
    assert len(list(parts.calibration)) == 7
    whole = {"x": np.concatenate([batch["x"] for batch in _data(4)])}
    cut = divide(whole, graph, **settings)
    assert cut.is_held_back
    assert cut.samples == 8
    few = divide(_data(2), graph, **settings)
    assert (few.is_held_back, len(few.calibration), few.samples) == (True, 1, 8)
    one = divide(_data(1), graph, **settings)
    assert (one.is_held_back, len(list(one.calibration)), one.samples) == (False, 1, 8)
    assert divide(_data(9), graph, **{**settings, "hold_back": False}).digest == parts.digest
    assert Dataset(parts.calibration, graph).spread(2) == (0, 3)  # what judges is spread over all of it
    assert few.digest != one.digest


def test_a_killed_run_goes_on_to_the_same_result(tmp_path) -> None:
    journal = tmp_path / "j.jsonl"
    program = [sys.executable, Path(__file__).with_name("auto_killed.py"), journal]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    known = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [record.get("scored") for record in known[1:3]] == ["float", "fast"]
    with journal.open("ab") as file:
        file.write(b'{"scored": "ptq", "fig')  # half a line
    resumed = found_with(journal, kill_at=-1)
    assert resumed == found_with(None, kill_at=-1)
    assert journal.read_bytes().startswith("\n".join(map(json.dumps, known)).encode())


def test_a_journal_keeps_all_figures(tmp_path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path, HEADER)
    scores = {"a": Score(0.1 + 0.2, float("inf"), 3, 0.25), "b": Score(-float("inf"), -200.0)}
    for key, score in scores.items():
        journal.keep_score(key, score)
    again = Journal(path, HEADER)
    assert {key: again.score(key) for key in scores} == scores
    assert again.score("c") is None


@pytest.mark.parametrize("key", HEADER)
def test_a_journal_of_something_else(tmp_path, key) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, HEADER)
    with pytest.raises(DataError, match="name another file, or remove it"):
        Journal(path, {**HEADER, key: "b"})
    assert len(path.read_text().splitlines()) == 1  # as it was


def test_a_journal_of_another_model(tmp_path) -> None:
    path = tmp_path / "j.jsonl"
    isobit.auto_quantize(simulator(chain(0, spread=0.0)), _data(2), journal=path, progress=False)
    with pytest.raises(DataError, match="is of another model"):
        isobit.auto_quantize(simulator(chain(1, spread=0.0)), _data(2), journal=path)
    with pytest.raises(DataError, match="is of other data"):
        isobit.auto_quantize(simulator(chain(0, spread=0.0)), _data(3), journal=path)
    with pytest.raises(DataError, match="is of other settings"):
        isobit.auto_quantize(simulator(chain(0, spread=0.0), weights="int4"), _data(2), journal=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello\n", "line 1 is damaged"),
        (b"{}\n", "is no journal"),
        (b"[1]\n", "line 1 is damaged"),
        (b"\xff\xfe\n", "line 1 is damaged"),
    ],
)
def test_what_is_no_journal(tmp_path, content, message) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        Journal(path, HEADER)
    assert path.read_bytes() == content


def test_a_damaged_line(tmp_path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, HEADER)
    path.write_bytes(path.read_bytes() + b'{"scored": "a", "figures": [1]}\n')
    with pytest.raises(DataError, match="line 2 is damaged"):
        Journal(path, HEADER)
