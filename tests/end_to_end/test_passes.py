"""Every pass over the data has the user's settings for passes, and as few passes are made as can be."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isobit
from isobit.errors import DataError, ModelError
from isobit.techniques import AdaRound, CorrectBias, FoldBatchNorms, SequentialMse, SmoothQuant
from isobit_onnx.model import OnnxModel

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
with np.load(DIGITS / "calibration.npz") as archive:
    IMAGES = archive["image"]
BATCHES = list(IMAGES.reshape(8, 32, 1, 32, 32))


@pytest.fixture
def run_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that went through the model, one after the other."""
    sizes: list[int] = []
    run, observe = OnnxModel.run, OnnxModel.observe

    def counted(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            sizes.append(len(next(iter(batch.values()))))
            yield batch

    def counting_run(self: OnnxModel, batch: Any) -> Any:
        list(counted([batch]))
        return run(self, batch)

    def counting_observe(self: OnnxModel, data: Iterable[Any], requests: Sequence[Any]) -> None:
        observe(self, counted(data), requests)

    monkeypatch.setattr(OnnxModel, "run", counting_run)
    monkeypatch.setattr(OnnxModel, "observe", counting_observe)
    return sizes


def test_a_recipe_joins_the_passes_of_its_steps(run_batches: list[int]) -> None:
    """Judging is on a quarter of the data, fitting on the rest. The float outputs: a quarter of a pass. Equalization,
    which the judge rolls back: what it and the judge must see, outputs before, ranges and outputs behind: 2. Balancing,
    which changes nothing: what it must see: three quarters. Rounding: weights alone and activations alone, the
    quantized model, ranges and outputs behind: 2.25. The correction and calibration together: 1, and outputs with it
    and without: a half.
    """
    sim = isobit.quantize(
        DIGITS / "model.onnx", IMAGES, target="default", recipe="ptq", method="minmax", progress=False
    )
    assert [step.outcome for step in sim.steps] == ["kept", "rolled back", "changed nothing", "rolled back", "kept"]
    assert sum(run_batches) / len(IMAGES) == 0.25 + 2 + 0.75 + 2.25 + 1 + 0.5


def test_calibration_has_what_a_technique_saw_of_a_model_that_it_left_as_it_was(run_batches: list[int]) -> None:
    sim = isobit.QuantSim(DIGITS / "model.onnx")
    isobit.quantize(sim, BATCHES, method="minmax", techniques=[FoldBatchNorms()])
    assert len(run_batches) == 8 + 1, "and one batch to compare with"
    sim.observe(AdaRound(), CorrectBias(), data=BATCHES)  # ranges, means and rows, float and quantized
    assert len(run_batches) == 8 + 1 + 8 + 8 + 8


def test_inputs_and_non_finite_data_reach_every_pass() -> None:
    labelled = [{"pixels": batch, "label": np.zeros(len(batch), np.int64)} for batch in BATCHES[:2]]
    dirty = [dict(batch) for batch in labelled]
    dirty[1] = {**dirty[1], "pixels": np.where(np.arange(32) == 5, np.nan, dirty[1]["pixels"]).astype(np.float32)}

    def pick(batch: dict[str, np.ndarray]) -> np.ndarray:
        return batch["pixels"]

    for call in (_quantize, _apply):
        call(labelled, inputs=pick)
        with pytest.raises(DataError, match="holds NaN"):
            call(dirty, inputs=pick)
    isobit.quantize(DIGITS / "model.onnx", dirty, inputs=pick, ignore_non_finite=True, example_inputs=BATCHES[0])


def _quantize(data: Any, **settings: Any) -> None:
    isobit.quantize(
        DIGITS / "model.onnx", data, techniques=[FoldBatchNorms(), CorrectBias()], example_inputs=BATCHES[0], **settings
    )


def _apply(data: Any, **settings: Any) -> None:
    isobit.QuantSim(DIGITS / "model.onnx").apply(SequentialMse(), data=data, **settings)


@pytest.mark.parametrize(
    "work",
    [
        lambda data: isobit.quantize(DIGITS / "model.onnx", data, recipe="ptq"),
        lambda data: isobit.quantize(DIGITS / "model.onnx", data, techniques=[SmoothQuant()]),
        lambda data: isobit.quantize(DIGITS / "model.onnx", data, techniques=[FoldBatchNorms(), CorrectBias("full")]),
        lambda data: isobit.QuantSim(DIGITS / "model.onnx").apply(AdaRound(), data=data),
    ],
    ids=("a recipe", "one pass and calibration", "two passes and calibration", "two passes"),
)
def test_data_that_serves_once_is_refused_before_the_work(
    work: Callable[[Iterator[np.ndarray]], object], run_batches: list[int]
) -> None:
    once = iter(BATCHES)
    with pytest.raises(DataError, match=r"goes through the data \d times, and an iterator serves once"):
        work(once)
    assert run_batches == []
    assert next(once) is BATCHES[0], "nothing was taken of it"


def test_data_that_serves_once_serves_folding_and_calibration() -> None:
    assert isobit.quantize(DIGITS / "model.onnx", iter(BATCHES)).calibration.startswith("ReaderError(")


def test_an_interrupted_technique_goes_on(tmp_path: Path, run_batches: list[int]) -> None:
    """Ctrl-C in the quantized pass: the float pass and the batches so far are in the file."""
    path, passes = tmp_path / "so-far.npz", iter(range(3))

    def interrupted() -> Iterator[np.ndarray]:
        number = next(passes)
        for index, batch in enumerate(BATCHES):
            if number == 1 and index == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="the statistics of 4 batches are in .*so-far.npz"):
            isobit.QuantSim(DIGITS / "model.onnx", weights="int4").apply(AdaRound(), data=interrupted, resume=path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(run_batches) == 8 + 1 + 4
    resumed, plain = (isobit.QuantSim(DIGITS / "model.onnx", weights="int4") for _ in range(2))
    (report,) = resumed.apply(AdaRound(), data=BATCHES, resume=path)
    assert len(run_batches) == 8 + 1 + 4 + 1 + 4
    (expected,) = plain.apply(AdaRound(), data=BATCHES)
    assert report.changed == expected.changed


def test_shuffled_data_is_gone_through_whole_and_said() -> None:
    """A loader that shuffles gives other batches each time: nothing of an earlier pass is continued."""
    rng = np.random.default_rng(0)

    def shuffled() -> Iterator[np.ndarray]:
        return iter(IMAGES[rng.permutation(len(IMAGES))].reshape(8, 32, 1, 32, 32))

    techniques = [FoldBatchNorms(), CorrectBias("full")]  # several passes
    sim = isobit.quantize(
        DIGITS / "model.onnx", shuffled, techniques=techniques, method="minmax", example_inputs=BATCHES[0]
    )
    assert any("another order at each pass" in note for note in sim.report.notes)
    assert sim.statistics.batches == 8


def test_data_with_nan_is_not_taken_for_shuffled() -> None:
    dirty = [np.where(np.arange(32) == 5, np.nan, batch).astype(np.float32) for batch in BATCHES[:3]]
    techniques = [FoldBatchNorms(), CorrectBias("full")]  # several passes
    sim = isobit.quantize(DIGITS / "model.onnx", dirty, techniques=techniques, ignore_non_finite=True)
    assert not any("another order" in note for note in sim.report.notes)


def test_an_uncalibrated_simulator_does_not_run_in_float_unsaid() -> None:
    sim = isobit.QuantSim(DIGITS / "model.onnx")
    with pytest.raises(ModelError, match="not calibrated, so it would run in float: .* run_float"):
        sim.run(BATCHES[0])
    assert sim.run_float(BATCHES[0])
    assert isobit.QuantSim(DIGITS / "model.onnx", exclude="*").run(BATCHES[0]), "there is nothing to calibrate"
