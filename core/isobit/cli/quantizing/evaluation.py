"""How well a quantized model does: top-1 accuracy where there are labels, agreement with the float model, SQNR."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.data import Dataset
from isobit.errors import DataError
from isobit.quantsim.checks.parts import pairs_of_parts, worst_parts
from isobit.quantsim.passes.progress import track

Outputs = Mapping[str, NDArray[Any]]
Run = Callable[[Outputs], Outputs]
_Classes = dict[str, list[NDArray[np.int64]]]  # by output, batch after batch


@dataclass
class Accuracy:
    """Shares of samples of which an output has the right class, 0..1; None where they were not measured."""

    exact: float | None = None  # of the float model
    simulated: float | None = None
    exported: float | None = None


@dataclass
class Evaluation:
    """Figures over one evaluation set; shares lie in 0..1 and are None where they were not measured."""

    output: str  # whose classes are counted: the first that has labels
    samples: int = 0
    labelled: bool = False
    float_accuracy: float | None = None
    simulated_accuracy: float | None = None
    exported_accuracy: float | None = None
    simulated_agreement: float | None = None
    exported_agreement: float | None = None
    sqnr: dict[str, float] = field(default_factory=dict)  # dB by output and part of one; infinite where they are equal
    further: dict[str, Accuracy] = field(default_factory=dict)  # other outputs that have labels, by name
    notes: list[str] = field(default_factory=list)


class Evaluator:
    """Compares the float model with the simulator, then with the exported model, batch by batch."""

    def __init__(
        self,
        dataset: Dataset,
        labels: NDArray[Any] | None,
        output: str,
        further: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """`labels` are those of `output`, `further` those of others, by name."""
        self.dataset = dataset
        self.labels = {} if labels is None else {output: _class_numbers(labels)}
        self.labels.update((name, _class_numbers(values)) for name, values in (further or {}).items())
        self.result = Evaluation(output, labelled=output in self.labels)
        self._names = list(dict.fromkeys([output, *self.labels]))
        self._float_classes: _Classes = {}
        self._parts: dict[str, dict[str, None]] = {}  # the names of the parts of each output

    @classmethod
    def of(cls, dataset: Dataset, labels: Mapping[str, NDArray[Any]]) -> Evaluator:
        """For labels by output, of which the first counts as the output; the model's first where there are none."""
        first = next(iter(labels or dataset.graph.outputs))
        return cls(
            dataset, labels.get(first), first, {name: values for name, values in labels.items() if name != first}
        )

    def accuracies(self, run: Run) -> dict[str, float]:
        """Top-1 accuracy of each labelled output of one model. Raises DataError for one that scores no classes."""
        classes: _Classes = {}
        for batch in self.dataset:
            self._add(classes, run(batch))
        found = {name: self._accuracy(classes, name) for name in self.labels}
        if not found or None in found.values():
            raise DataError("; ".join(self.result.notes) or "there are no labels")
        return {name: accuracy for name, accuracy in found.items() if accuracy is not None}

    def compare(self, run_float: Run, run_simulated: Run) -> None:
        """Fill in the float model's and the simulator's figures."""
        energies: dict[str, NDArray[np.float64]] = {}
        simulated_classes: _Classes = {}
        for batch in track(self.dataset, "evaluating", len(self.dataset)):
            exact, simulated = run_float(batch), run_simulated(batch)
            pairs = {name: (a, simulated[name]) for name, a in exact.items() if a.dtype.kind == "f"}
            for name, parts in pairs_of_parts(self.dataset.graph, exact, simulated):
                self._parts.setdefault(name, {}).update(dict.fromkeys(parts))
                pairs |= parts
            for name, pair in pairs.items():
                energies[name] = energies.get(name, np.zeros(2)) + _energies(*pair)
            self._add(self._float_classes, exact)
            self._add(simulated_classes, simulated)
            self.result.samples += len(next(iter(batch.values())))
        ratios = {name: _decibel(signal, noise) for name, (signal, noise) in energies.items()}
        of_parts = {name: {part: ratios.pop(part) for part in names} for name, names in self._parts.items()}
        self.result.sqnr = {**ratios, **worst_parts(of_parts)}
        self.result.float_accuracy = self._accuracy(self._float_classes, self.result.output)
        self.result.simulated_accuracy = self._accuracy(simulated_classes, self.result.output)
        for name in self._further():
            of = (self._accuracy(classes, name) for classes in (self._float_classes, simulated_classes))
            self.result.further[name] = Accuracy(*of)
        self.result.simulated_agreement = self._agreement(simulated_classes)

    def exported(self, run: Run) -> None:
        """Fill in the exported model's figures; `compare` comes first."""
        classes: _Classes = {}
        for batch in track(self.dataset, "checking the export", len(self.dataset)):
            self._add(classes, run(batch))
        self.result.exported_accuracy = self._accuracy(classes, self.result.output)
        for name in self._further():
            self.result.further.setdefault(name, Accuracy()).exported = self._accuracy(classes, name)
        self.result.exported_agreement = self._agreement(classes)

    def _further(self) -> list[str]:
        return [name for name in self.labels if name != self.result.output]

    def _add(self, classes: _Classes, outputs: Outputs) -> None:
        """The classes of another batch."""
        for name in self._names:
            classes.setdefault(name, []).append(self._classes(outputs, name))

    def _classes(self, outputs: Outputs, name: str) -> NDArray[np.int64]:
        """The best class of each sample; empty where the output does not score classes."""
        scores = outputs[name]
        while scores.ndim > 2 and scores.shape[-1] == 1:
            scores = scores[..., 0]
        if scores.ndim != 2 or scores.shape[1] < 2 or scores.dtype.kind != "f":
            shape = ", ".join(map(str, ("samples", *outputs[name].shape[1:])))
            note = f"output {name!r} has shape ({shape}), which scores no classes: no top-1"
            if note not in self.result.notes:
                self.result.notes.append(note)
            return np.zeros(0, np.int64)
        labels = self.labels.get(name)
        if labels is not None and labels.size and int(labels.max()) >= scores.shape[1]:
            raise DataError(
                f"label {int(labels.max())} is out of range: output {name!r} scores classes 0 to {scores.shape[1] - 1}"
            )
        return np.asarray(scores.argmax(axis=1), np.int64)

    def _accuracy(self, classes: _Classes, name: str) -> float | None:
        predicted, labels = np.concatenate(classes[name]), self.labels.get(name)
        if labels is None or not predicted.size:
            return None
        return float(np.mean(predicted == labels[: len(predicted)]))

    def _agreement(self, classes: _Classes) -> float | None:
        quantized, exact = (np.concatenate(each[self.result.output]) for each in (classes, self._float_classes))
        return float(np.mean(quantized == exact)) if quantized.size else None


def _class_numbers(labels: NDArray[Any]) -> NDArray[np.int64]:
    values = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    are_whole = values.dtype.kind in "iu" or (values.dtype.kind == "f" and bool(np.all(values == np.rint(values))))
    if values.ndim != 1 or not are_whole:
        raise DataError(
            f"the labels have shape {labels.shape} and type {labels.dtype}: they must be one whole number a sample"
        )
    if values.size and values.min() < 0:
        raise DataError(f"label {values.min():g} is negative: labels are class numbers from 0")
    return values.astype(np.int64)


def _energies(exact: NDArray[Any], simulated: NDArray[Any]) -> NDArray[np.float64]:
    """Energy of the signal and of the noise."""
    signal = exact.astype(np.float64).ravel()
    noise = simulated.astype(np.float64).ravel() - signal
    return np.array([signal @ signal, noise @ noise])


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
